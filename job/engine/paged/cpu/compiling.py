"""Our C++ as a library: compiled on the machine that runs it, for its processor, and kept in the user's cache.

Why not ``torch.utils.cpp_extension.load``? It needs ninja on the PATH; its lock file outlives a process that is killed
while it compiles, and all later processes wait for it; and its cache does not distinguish between processors, although
machines with different ones may share a home directory.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from job.errors import first_line

FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    # The part of -ffast-math that vectorized sums need; the rest would turn off denormals in the whole process.
    *("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno"),
)
"""OpenMP is the copy that torch has loaded: its threads are used, and no second set is started."""

COMPILE_SECONDS = 60


class NoLibrary(Exception):
    """There is no compiler, or its output cannot be used."""


def compiled_library(source: Path, constants: Mapping[str, int]) -> ctypes.CDLL:
    """Compile a file with these constants defined, or use an earlier result.

    Raises:
        NoLibrary: with the reason.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise NoLibrary("there is no C++ compiler (c++, g++, clang++ or the one that CXX names)")
    defines = [f"-D{name}={value}" for name, value in constants.items()]
    try:
        library = _compiled(source, [*shlex.split(compiler), *FLAGS, *defines, str(source)])
        try:
            return ctypes.CDLL(str(library))
        except OSError:
            library.unlink()  # damaged; the next start recompiles it
            raise
    except subprocess.CalledProcessError as error:
        raise NoLibrary(f"{compiler}: {first_line(RuntimeError(error.stderr))}") from None
    except (OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home directory
        raise NoLibrary(f"{compiler}: {first_line(error)}") from None


def _compiled(source: Path, command: Sequence[str]) -> Path:
    """Return the library that the command makes, or an earlier one from the same source, processor and compiler."""
    facts = (*command, source.read_text(encoding="utf-8"), _processor(), _output([command[0], "--version"]))
    library = _cache_directory() / f"{source.stem}-{hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:32]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as directory:
            made = Path(directory) / library.name
            _output([*command, "-o", str(made)])
            with made.open("rb") as file:
                os.fsync(file.fileno())  # else a power cut may leave a torn file under the final name
            made.replace(library)
    return library


def _cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dataset-inference-job"


def _processor() -> str:
    """Return what native code depends on: nodes of several kinds may share a home directory."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    kinds = {line for line in lines if line.split(":")[0].strip() in ("flags", "Features", "model name")}
    return " ".join([platform.machine(), *sorted(kinds)])


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS).stdout
