"""Find or build the C++ extension.

The sources (`csrc/`) use LibTorch's stable ABI, so building takes seconds and a library built against one torch loads
in later ones. It is compiled on first use, for this machine's CPU, into a cache keyed by the sources, the compiler, the
flags, the torch ABI and the CPU. Without a compiler everything runs on the reference implementation.

Environment: CXX names the compiler, DLLM_CACHE the cache folder (default: dllm in the user's cache folder). A library
that is not what was built (a full disk, a power cut) is found out by its digest and built again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# torch 2.10, the oldest supported: what is built against a newer torch loads there too
_TARGET_VERSION = "0x020A000000000000ULL"
# contraction off: the random stream is specified in separately rounded products and sums (philox.py)
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared", f"-DTORCH_TARGET_VERSION={_TARGET_VERSION}")


class Status(NamedTuple):
    """The state of the extension. `reason` is None when it is loaded, else says what is missing."""

    library: Path | None
    compiler: str | None
    source: Path
    reason: str | None


def load() -> str | None:
    """Build the extension if need be and load it, once per process; None, or the reason why it is not there."""
    return status().reason


@functools.cache
def status() -> Status:
    """Build and load as :func:`load` does, and say where everything is.

    Example:
        >>> status().source.name
        'csrc'
    """
    source = source_folder()
    compiler = find_compiler()
    if not any(source.glob("*.cpp")):
        return Status(None, compiler, source, f"the C++ sources are not at {source}")
    if compiler is None:
        named = os.environ.get("CXX", "").strip()
        missing = f"CXX is set to {named!r}, which was not found" if named else "no C++ compiler was found"
        return Status(None, None, source, f"{missing} (install g++ or clang++, or set CXX)")
    try:
        library = _build(compiler, source)
        torch.ops.load_library(library)
    except OSError as error:
        reason = f"{error} (cache folder {cache_folder()}; DLLM_CACHE names another)"
        return Status(None, compiler, source, reason)
    except (subprocess.SubprocessError, RuntimeError) as error:
        return Status(None, compiler, source, str(error))
    return Status(library, compiler, source, None)


def source_folder() -> Path:
    """csrc beside the package in a checkout, inside it when installed from a wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "csrc"
    return checkout if (checkout / "library.cpp").is_file() else package / "csrc"


def find_compiler() -> str | None:
    """The compiler command: $CXX, else the first of c++, g++, clang++ on the path."""
    named = os.environ.get("CXX", "").strip()
    if named:
        return named if shutil.which(_words(named)[0]) else None
    return next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def cache_folder() -> Path:
    """Where built libraries are kept; any of it may be deleted at any time."""
    if named := os.environ.get("DLLM_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dllm"


def _build(compiler: str, source: Path) -> Path:
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    command = [*_words(compiler), *_FLAGS, native]
    sources = sorted(source.glob("*.cpp"))
    library = cache_folder() / _key(compiler, command, [*sources, *sorted(source.glob("*.h"))]) / "dllm_kernels.so"
    if _is_whole(library):
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    torch_folder = Path(torch.__file__).parent
    # built aside and renamed: nobody ever sees half a file
    with _one_at_a_time(library.parent.name), tempfile.TemporaryDirectory(dir=library.parent) as aside:
        if _is_whole(library):  # another process has built it meanwhile
            return library
        built = Path(aside) / library.name
        command += [f"-I{torch_folder / 'include'}", *map(str, sources), "-o", str(built)]
        command += [f"-L{torch_folder / 'lib'}", "-ltorch_cpu"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            raise RuntimeError(f"{compiler} failed to build the C++ extension:\n{done.stderr.strip()[-2000:]}")
        digest = _digest_of(library)
        (Path(aside) / digest.name).write_text(_digest(built))
        os.replace(Path(aside) / digest.name, digest)
        os.replace(built, library)
    return library


@contextlib.contextmanager
def _one_at_a_time(key: str) -> Iterator[None]:
    """Within it no other process of this machine builds the same: the ranks of a run would otherwise all do."""
    if fcntl is None:
        yield
        return
    try:
        lock = (Path(tempfile.gettempdir()) / f"dllm-{key}.lock").open("w")
    except OSError:  # another user's
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_whole(library: Path) -> bool:
    """Whether a library is there as it was built."""
    digest = _digest_of(library)
    return library.is_file() and digest.is_file() and digest.read_text() == _digest(library)


def _digest_of(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _words(command: str) -> list[str]:
    """A command as a shell reads it; one that no shell could read is one word."""
    try:
        return shlex.split(command)
    except ValueError:
        return [command]


def _key(compiler: str, command: list[str], files: list[Path]) -> str:
    digest = hashlib.sha256()
    version = subprocess.run([*_words(compiler), "--version"], capture_output=True, text=True).stdout
    abi = (torch.__version__.split("+")[0].rsplit(".", 1)[0], torch._C._GLIBCXX_USE_CXX11_ABI, sys.platform)
    for part in (shlex.join(command), version, repr(abi), _cpu()):
        digest.update(part.encode())
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:24]


def _cpu() -> str:
    """The CPU's model and instruction sets, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)})) or platform.machine()
