"""Compiles the host kernels at first use and keeps them on disk.

A library is called by the hash of everything that goes into it (source, flags, compiler, processor), is
written under another name and renamed, ends in a checksum and says its own hash when it is loaded: two
processes may build at once, half a library is never loaded, and none outlives its source.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from snn_ext.kernels.abi import Arguments

__all__ = ["SOURCES", "BuildError", "Compiler", "cache_folder", "compiler", "load"]

SOURCES = Path(__file__).parent / "src"
_FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
)
# From the best to the most modest; the first that compiles and loads is taken.
_EXTRA = (("-march=native", "-fopenmp"), ("-march=native", "-fopenmp-simd"), ("-fopenmp-simd",))
_TIMEOUT = 300  # seconds


class BuildError(Exception):
    """No library; the message is the reason, one line."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: its command and what it says about itself."""

    command: tuple[str, ...]
    version: str

    def compile(self, arguments: Sequence[str]) -> None:
        """Run it.

        Raises:
            BuildError: it fails, or takes minutes.
        """
        _run([*self.command, *arguments])


def compiler() -> Compiler:
    """The compiler of the environment variable CXX, or else g++ or clang++.

    Raises:
        BuildError: there is none that runs.
    """
    chosen = os.environ.get("CXX", "")
    return _compiler(chosen, os.environ.get("PATH", ""))


@functools.lru_cache(maxsize=8)
def _compiler(chosen: str, path: str) -> Compiler:
    reasons = []
    for command in [shlex.split(chosen)] if chosen.strip() else [["g++"], ["clang++"], ["c++"]]:
        found = shutil.which(command[0], path=path)
        if found is None:
            reasons.append(f"{command[0]} is not installed")
            continue
        try:
            version = _run([found, *command[1:], "--version"])
        except BuildError as error:
            reasons.append(str(error))
            continue
        return Compiler((found, *command[1:]), version)
    raise BuildError("; ".join(reasons))


def _run(command: Sequence[str]) -> str:
    name = os.path.basename(command[0])
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{name} does not run: {error}") from None
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise BuildError(f"{name} failed: {first.strip()}")
    return done.stdout


def cache_folder() -> Path:
    """Where libraries are kept: SNN_EXT_CACHE, or snn_ext in the user's cache folder."""
    if chosen := os.environ.get("SNN_EXT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snn_ext"


@functools.cache
def _private_folder() -> Path:
    """For this process only, where the cache folder cannot be written to."""
    folder = tempfile.mkdtemp(prefix="snn_ext-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def load(
    specs: str, *, main: str = "host.cpp", sources: Path = SOURCES, flags: Sequence[str] = ()
) -> ctypes.CDLL:
    """The library with the kernels of `specs` (a list of SNN_SPEC(...)), compiled if it is not on disk.

    Args:
        specs: value of the macro SNN_SPECS.
        main: file to compile.
        sources: folder of the source.
        flags: more flags, behind the usual ones.

    Raises:
        BuildError: no compiler, it fails, or its library cannot be loaded.
    """
    tool, reason = compiler(), BuildError("no attempt was made")
    for extra in _EXTRA:
        arguments = [*_FLAGS, *extra, *flags, f"-DSNN_SPECS={specs}", str(sources / main)]
        key = _key(tool, sources, [*_FLAGS, *extra, *flags, specs, main])
        try:
            return _load_or_build(tool, key, arguments)
        except BuildError as error:
            reason = error
    raise reason


def _key(tool: Compiler, sources: Path, rest: Sequence[str]) -> str:
    parts = [*tool.command, tool.version, _processor(), *rest, _text(sources)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@functools.cache
def _text(sources: Path) -> str:
    return "\0".join(f"{p.name}\0{p.read_text()}" for p in sorted(sources.glob("*.c*")))


@functools.cache
def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    names = ("flags", "Features", "model name", "vendor_id", "CPU part")
    return "\0".join([platform.machine(), *sorted({line for line in lines if line.startswith(names)})])


def _load_or_build(tool: Compiler, key: str, arguments: Sequence[str]) -> ctypes.CDLL:
    for folder in (cache_folder(), _private_folder()):
        library = folder / f"{key}.so"
        if library.is_file():
            try:
                return _open(library, key)
            except BuildError:
                pass  # damaged: built again below, and replaced
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(suffix=".so", dir=folder)
        except OSError:
            continue
        os.close(handle)
        temporary = Path(name)
        try:
            tool.compile([*arguments, f'-DSNN_KEY="{key}"', "-o", name])
            _seal(temporary)
            loaded = _open(temporary, key)
            os.replace(temporary, library)
            return loaded
        except OSError:
            continue  # the disk is full, say
        finally:
            temporary.unlink(missing_ok=True)
    raise BuildError("there is no folder to write a library to")


def _seal(path: Path) -> None:
    """Append a checksum: loading half a library would kill the process."""
    with path.open("r+b") as file:
        digest = hashlib.sha256(file.read()).digest()
        file.write(digest)


def _open(path: Path, key: str) -> ctypes.CDLL:
    try:
        data = path.read_bytes()
        if hashlib.sha256(data[:-32]).digest() != data[-32:]:
            raise BuildError("the library is damaged")
        library = ctypes.CDLL(str(path))
        library.snn_key.restype = ctypes.c_char_p
        library.snn_size.restype = ctypes.c_int64
        found, size = library.snn_key(), library.snn_size()
    except (OSError, AttributeError) as error:
        raise BuildError(f"the library cannot be loaded: {error}") from None
    if found != key.encode() or size != ctypes.sizeof(Arguments):
        raise BuildError("the library is not the one that was asked for")
    return library
