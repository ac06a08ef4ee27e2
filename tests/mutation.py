"""Mutation testing of the core: draw a sample of mutants, run it with mutmut, and count what survives.

    python tests/mutation.py run --sample 200      # of each package; 0: all mutants (hours)
    python tests/mutation.py run --again           # what of the sample was not caught, after adding tests
    python tests/mutation.py score                 # what is known, and the survivors

`make mutants` does both. mutmut works in ``mutants/`` and keeps its results there; what to mutate and which
tests to run is in pyproject.toml.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import get_mutant_name

PACKAGES = ("dynamics", "methods", "patching")
ROOT = Path(__file__).parents[1]
CAUGHT = {"killed", "timeout", "segfault"}


def mutants(package: str) -> list[str]:
    """Names of all mutants of a package."""
    names = []
    for file in sorted(Path("snn_ext", package).glob("*.py")):
        found = mutate_file_contents(str(file), file.read_text()).mutant_names
        names += [get_mutant_name(file, name) for name in found]
    return names


def results(package: str) -> dict[str, str]:
    """Name -> status of the mutants of a package, as of the last run."""
    return {
        name: status_by_exit_code[code]
        for file in sorted(Path("mutants", "snn_ext", package).glob("*.meta"))
        for name, code in json.loads(file.read_text())["exit_code_by_key"].items()
    }


def run(size: int, seed: int, processes: int, again: bool) -> None:
    """Test a sample of the mutants of each package, the same one for the same seed and sources."""
    chosen: list[str] = []
    for package in PACKAGES:
        names = mutants(package)
        sample = random.Random(seed).sample(names, min(size or len(names), len(names)))
        known = results(package) if again else {}
        chosen += [name for name in sample if known.get(name) not in CAUGHT]
        print(f"{package}: {len(sample)} of {len(names)} mutants")
    paths = [str(ROOT / "mutants" / "adapters"), os.environ.get("PYTHONPATH", "")]
    environment = {
        "SNN_EXT_EXAMPLES": "30",
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(processes), *chosen]
    subprocess.run(command, env=environment, check=True)


def score() -> None:
    """Print the share that was caught, per package, and the names of the others."""
    survivors: list[str] = []
    for package in PACKAGES:
        found = results(package)
        counts = Counter(found.values())
        survivors += [f"{s}: {name}" for name, s in found.items() if s not in CAUGHT | {"not checked"}]
        tested = counts.total() - counts["not checked"]
        caught = sum(counts[status] for status in CAUGHT)
        print(f"{package}: {caught} of {tested} caught, {caught / max(tested, 1):.1%} {dict(counts)}")
    print("\n".join(survivors))


if __name__ == "__main__":
    os.chdir(ROOT)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "score"])
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "run":
        run(arguments.sample, arguments.seed, arguments.processes, arguments.again)
    else:
        score()
