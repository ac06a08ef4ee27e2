"""First use under bad luck: no compiler, a broken or slow one, a cache nobody may write to, two at once."""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from snn_ext import BackendUnavailableError, Dynamics, Leak
from snn_ext.kernels import build, host_backend, registry
from snn_ext.kernels.arguments import Call
from snn_ext.kernels.candidates import BACKENDS
from snn_ext.kernels.spec import Spec

KERNEL = f"SNN_SPEC(neuron,{Spec().template})"
CALL = Call(torch.ones(2, 1, 3), Dynamics(leak=Leak(2.0)))


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty cache folder, and nothing compiled or remembered yet."""
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SNN_EXT_BACKEND", raising=False)
    host = host_backend.Host()
    backend = BACKENDS["host"]._replace(
        run=lambda call: registry_run(call, host), unavailable=host.unavailable, probe=lambda: probe(host)
    )
    monkeypatch.setitem(BACKENDS, "host", backend)
    monkeypatch.setattr(registry, "_logged", set())
    yield
    build._private_folder.cache_clear()


def registry_run(call: Call, host: host_backend.Host) -> object:
    return host_backend.fused.run(call, host)


def probe(host: host_backend.Host) -> str | None:
    return host_backend.probe(host)


def fake(folder: Path, script: str, name: str = "g++") -> Path:
    """A compiler that is a shell script."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


def runs_anyway(caplog: pytest.LogCaptureFixture, reason: str) -> None:
    """Auto runs another backend and says why once; the host by name is refused, with the reason."""
    with caplog.at_level(logging.INFO, "snn_ext"):
        first, second = registry.run(CALL), registry.run(CALL)
    assert torch.equal(first.spikes, second.spikes)
    lines = [r.getMessage() for r in caplog.records if r.name == "snn_ext" and "host" in r.getMessage()]
    assert len(lines) == 1
    assert reason in lines[0]
    assert caplog.records[0].levelno == logging.WARNING
    with registry.use_backend("host"), pytest.raises(BackendUnavailableError, match="do: ") as caught:
        registry.run(CALL)
    assert reason in str(caught.value)
    assert "install a C++ compiler" in str(caught.value)
    status = {s.name: s for s in registry.backends()}["host"]
    assert not status.available
    assert reason in status.reason
    assert status.fix == host_backend.FIX


def test_no_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    runs_anyway(caplog, "g++ is not installed; clang++ is not installed; c++ is not installed")


def test_a_compiler_that_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "nowhere" / "g++"))
    runs_anyway(caplog, "g++ is not installed")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "g++ failed: no message"),
        ("[ $1 = --version ] && echo fake 1.0 && exit; echo 'x.cpp:1: fatal error: it is broken' >&2; exit 1",
         "g++ failed: x.cpp:1: fatal error: it is broken"),
        ("[ $1 = --version ] && echo fake 1.0 && exit; exit 0", "the library cannot be loaded"),
        ("[ $1 = --version ] && echo fake 1.0 && exit; for o; do :; done; echo rubbish > $o",
         "the library cannot be loaded"),
    ],
    ids=["no version", "an error", "no library", "a broken library"],
)  # fmt: skip
def test_a_broken_compiler(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    script: str,
    reason: str,
) -> None:
    monkeypatch.setenv("CXX", str(fake(tmp_path / "bin", script)))
    runs_anyway(caplog, reason)
    assert not libraries(tmp_path / "cache"), "nothing is left behind"


def test_a_compiler_that_hangs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "_TIMEOUT", 0.2)
    monkeypatch.setenv("CXX", str(fake(tmp_path / "bin", "exec sleep 10")))
    runs_anyway(caplog, "g++ does not run")


def test_a_compiler_without_openmp_and_native(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Modest flags are tried, down to none."""
    real = shutil.which("g++") or shutil.which("c++")
    refuse = 'for o; do case "$o" in -fopenmp|-march=native) echo "error: no $o" >&2; exit 1;; esac; done'
    monkeypatch.setenv("CXX", str(fake(tmp_path / "bin", f'{refuse}\nexec {real} "$@"')))
    assert registry.choose(CALL).name == "host"
    registry.run(CALL)
    assert len(libraries(tmp_path / "cache")) == 1


def test_compiled_once_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    build.load(KERNEL)
    (library,) = libraries(tmp_path / "cache")
    assert library.suffix == ".so"
    assert stat.S_IMODE(library.parent.stat().st_mode) == 0o700
    monkeypatch.setattr(build.Compiler, "compile", lambda *_: pytest.fail("compiled again"))
    build.load(KERNEL)


def test_the_first_call_says_how_long_it_took(caplog: pytest.LogCaptureFixture) -> None:
    compiled, loaded = host_backend.Host(), host_backend.Host()
    with caplog.at_level(logging.INFO, "snn_ext"):
        for host in (compiled, compiled, loaded):
            host.load(Spec())
    found = [
        re.fullmatch(r"host: a kernel was ready in (.*) s \(.*\)", r.getMessage()) for r in caplog.records
    ]
    compiling, loading = (float(m[1]) for m in found if m)
    assert compiling > loading
    first, second = ({s.name: s.seconds for s in registry.backends()}["host"] for _ in range(2))
    assert first > second >= 0


@pytest.mark.parametrize("damage", ["empty", "truncated", "another kernel's"])
def test_a_damaged_library_is_built_again(tmp_path: Path, damage: str) -> None:
    build.load(KERNEL)
    (library,) = libraries(tmp_path / "cache")
    whole = library.read_bytes()
    library.unlink()  # the loaded one stays as it is in memory
    if damage == "empty":
        library.write_bytes(b"")
    elif damage == "truncated":
        library.write_bytes(whole[: len(whole) // 2])
    else:
        build.load(f"SNN_SPEC(other,{Spec().template})")
        (other,) = set(libraries(tmp_path / "cache")) - {library}
        shutil.copy(other, library)
    assert build.load(KERNEL).neuron_forward
    assert library.stem.encode() in library.read_bytes(), "replaced by the right one"


def test_an_upgrade_of_the_compiler_builds_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = shutil.which("g++") or shutil.which("c++")
    for version in ("1.0", "2.0"):
        script = f'[ "$1" = --version ] && echo fake {version} && exit\nexec {real} "$@"'
        compiler = fake(tmp_path / "bin", script)
        monkeypatch.setenv("CXX", str(compiler))
        build._compiler.cache_clear()  # as in a new process
        build.load(KERNEL)
    assert len(libraries(tmp_path / "cache")) == 2


def test_a_change_of_the_source_builds_again(tmp_path: Path) -> None:
    shutil.copytree(build.SOURCES, tmp_path / "src")
    build.load(KERNEL, sources=tmp_path / "src")
    with (tmp_path / "src" / "neuron.cuh").open("a") as file:
        file.write("// changed\n")
    build._text.cache_clear()  # as in a new process
    build.load(KERNEL, sources=tmp_path / "src")
    assert len(libraries(tmp_path / "cache")) == 2


@pytest.mark.parametrize("trouble", ["a file in its place", "no right to write", "below a file"])
def test_a_cache_that_cannot_be_written_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trouble: str
) -> None:
    """A private folder serves instead, and is gone with the process."""
    cache = tmp_path / "cache"
    if trouble == "a file in its place":
        cache.write_text("")
    elif trouble == "below a file":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path / "file" / "cache"))
    else:
        cache.mkdir(mode=0o500)
        if os.access(cache, os.W_OK):  # root may write anywhere: refuse for it
            real = build.tempfile.mkstemp

            def refuse(*args: object, dir: Path, **options: object) -> object:
                if Path(dir) == cache:
                    raise PermissionError("read-only")
                return real(*args, dir=dir, **options)  # type: ignore[call-overload]

            monkeypatch.setattr(build.tempfile, "mkstemp", refuse)
    registry.run(CALL)
    assert registry.choose(CALL).name == "host"
    assert len(libraries(build._private_folder())) == 1


def test_a_private_folder_goes_with_its_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code = f"from snn_ext.kernels import build; build.load({KERNEL!r}); print(build._private_folder())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SNN_EXT_CACHE": str(tmp_path / "file" / "cache")},
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert not Path(done.stdout.strip()).exists()


def test_two_processes_at_once(tmp_path: Path) -> None:
    code = """
import torch
from snn_ext import Dynamics, Leak
from snn_ext.kernels import registry
from snn_ext.kernels.arguments import Call
with registry.use_backend("host"):
    print(registry.run(Call(torch.ones(2, 1, 3), Dynamics(leak=Leak(2.0)))).spikes.sum().item())
"""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert float(out) == registry.run(CALL).spikes.sum().item()
    assert len(libraries(tmp_path / "cache")) == 1, "one library, no temporary file"


def test_nothing_is_compiled_before_it_is_needed(tmp_path: Path) -> None:
    code = """
import sys
before = set(sys.modules)
import snn_ext
from snn_ext.kernels import registry
from snn_ext import Dynamics
registry.choose(Dynamics())
assert not {"cupy", "torch._dynamo"} & (set(sys.modules) - before)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    assert not (tmp_path / "cache").exists()
