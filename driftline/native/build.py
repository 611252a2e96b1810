"""Compiles the C sources of this folder into a shared library, once for each source, compiler and processor.

The library lies in the user's cache directory under a name that hashes all it depends on, so nothing is ever stale.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

SWITCH = "DRIFTLINE_NATIVE"
"""Environment variable that turns the kernels off when it is 0."""
SOURCES = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
TARGETS = (("-march=native",), ("-mcpu=native",), ())
"""For this processor, in the spelling that the compiler knows; or for any."""
PATIENCE = 120
"""Seconds after which a compiler is given up."""


class BuildError(Exception):
    """The kernels cannot be built here."""


@cache
def library() -> ctypes.CDLL:
    """Return the loaded library, built first where it is not yet.

    Raises
    ------
    BuildError
        When there is no compiler, it fails, or the kernels are switched off.
    """
    if os.environ.get(SWITCH, "").strip() == "0":
        raise BuildError(f"switched off by {SWITCH}=0")
    compiler = find_compiler()
    try:
        return ctypes.CDLL(str(build(compiler, cache_directory())))
    except OSError:  # a directory that cannot be written, or a damaged file
        with tempfile.TemporaryDirectory(prefix="driftline-") as own:  # what is loaded outlives its file
            try:
                return ctypes.CDLL(str(build(compiler, Path(own))))
            except OSError as error:
                raise BuildError(f"the built library does not load: {error}") from error


def cache_directory() -> Path:
    """Return the folder of built libraries: ``$XDG_CACHE_HOME/driftline/native``, by default under ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "driftline" / "native"


def build(compiler: Sequence[str], directory: Path) -> Path:
    """Return the path of the library in ``directory``, compiled unless it is there.

    Written under a temporary name and moved, so that of two processes building at once neither loads half a file.

    Raises
    ------
    BuildError
    OSError
        When the directory cannot be written.
    """
    path = directory / f"driftline-{fingerprint(compiler)}.so"
    if path.is_file():
        return path
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, unfinished = tempfile.mkstemp(".so", "building-", directory)
    os.close(handle)
    try:
        _compile(compiler, Path(unfinished))
        Path(unfinished).replace(path)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return path


def fingerprint(compiler: Sequence[str]) -> str:
    """Return a hash of sources, flags, compiler and processor."""
    parts = [p.name.encode() + b"\0" + p.read_bytes() for p in sorted(SOURCES.glob("*.[ch]"))]
    parts += [repr((tuple(compiler), FLAGS, TARGETS)).encode(), _run([*compiler, "--version"]).encode()]
    parts += [_processor().encode()]
    return hashlib.blake2b(b"\0\0".join(parts), digest_size=12).hexdigest()


def _compile(compiler: Sequence[str], output: Path) -> None:
    # As one unit, since reading the compiler's headers takes as long as compiling.
    unit = "".join(f'#include "{source.name}"\n' for source in sorted(SOURCES.glob("*.c")))
    problem: BuildError | None = None
    for target in TARGETS:
        try:
            _run([*compiler, *FLAGS, *target, "-I", str(SOURCES), "-x", "c", "-", "-o", str(output), "-lm"], unit)
            return
        except BuildError as error:
            problem = problem or error
    raise problem or BuildError("no target")


def find_compiler() -> list[str]:
    """Return the command of the C compiler: ``$CC``, or the first of :data:`COMPILERS`.

    Raises
    ------
    BuildError
    """
    named = shlex.split(os.environ.get("CC", ""))
    if named and shutil.which(named[0]):
        return named
    for name in COMPILERS:
        if found := shutil.which(name):
            return [found]
    raise BuildError(f"there is no C compiler: none of $CC, {', '.join(COMPILERS)} is on the path")


def _run(command: Sequence[str], given: str = "") -> str:
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=PATIENCE, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        raise BuildError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[:2000]}")
    return done.stdout


def _processor() -> str:
    """Return what tells processors apart for which code is compiled."""
    described = Path("/proc/cpuinfo")
    try:
        lines = described.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    kept = {line for line in lines if line.split(":")[0].strip() in ("model name", "flags", "Features", "CPU part")}
    return "\n".join([platform.machine(), platform.processor(), *sorted(kept)])
