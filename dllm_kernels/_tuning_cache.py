"""Files with the block shapes that ``python -m dllm_kernels.tune`` measured to be best: reading and writing them.

There is one file for each kind of GPU, in the folder of the C++ extension. It records the GPU, the versions of torch,
Triton and the driver, and a fingerprint of the kernels' sources. If any of these differs now, the file is ignored, with
one line in the log; so is a file that cannot be read, and an entry that `tune` would not measure.

Environment: DLLM_TUNING=off ignores all such files; DLLM_CACHE names the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from dllm_kernels import _extension, _impl

_DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/sys/module/amdgpu/version"))


def switched_off() -> bool:
    """Whether the environment switches measured block shapes off.

    Raises:
        ValueError: DLLM_TUNING is neither on nor off.
    """
    said = os.environ.get("DLLM_TUNING", "on").lower()
    if said not in ("on", "off"):
        raise ValueError(f"DLLM_TUNING must be on or off, got {said!r}")
    return said == "off"


def read(gpu: str) -> Mapping[str, object]:
    """What is kept for a kind of GPU, {table: choice}; empty where nothing valid is."""
    return {} if switched_off() else _read(gpu, path(gpu))


def _read(gpu: str, file: Path) -> Mapping[str, object]:
    return _document(gpu, file)["choices"]


def _document(gpu: str, file: Path) -> dict[str, object]:
    """Choices, and what was measured for them; both empty where nothing valid is kept."""
    nothing = {"choices": {}, "measured": []}
    if not file.is_file():
        return nothing
    try:
        found = json.loads(file.read_text())
        kept, document = found["made_for"], {"choices": dict(found["choices"]), "measured": list(found["measured"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _impl.log_once(f"the tuning in {file} cannot be read and is ignored: {error!r}")
        return nothing
    now = made_for(gpu)
    if other := [name for name in now if not isinstance(kept, dict) or kept.get(name) != now[name]]:
        _impl.log_once(
            f"the tuning in {file} was measured with another {', '.join(other)} and is ignored; "
            "python -m dllm_kernels.tune measures again"
        )
        return nothing
    return document


def write(gpu: str, table: str, choice: object | None, measured: list[dict[str, object]]) -> Path:
    """Keep what was found for a table on a kind of GPU, beside what is kept for others and still valid.

    Args:
        choice: None where the table is as fast as anything; what was kept for it before is dropped.
        measured: why; a dict for each candidate, with the table's name as "table".
    """
    file = path(gpu)
    with _locked(file):
        document = _document(gpu, file)
        others = [row for row in document["measured"] if row["table"] != table]
        choices = {name: kept for name, kept in document["choices"].items() if name != table}
        choices |= {} if choice is None else {table: choice}
        document = {"made_for": made_for(gpu), "choices": choices, "measured": others + measured}
        # written aside and renamed: who reads meanwhile finds the old file or the new one
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".part", delete=False) as aside:
            aside.write(json.dumps(document, indent=1) + "\n")
        os.replace(aside.name, file)
    return file


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Within, no other process changes the file: tables may be tuned on several GPUs of a machine at once.

    Raises:
        OSError: its folder cannot be written to.
    """
    import fcntl  # there is none on Windows, where nothing is tuned

    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def check_writable(gpu: str) -> None:
    """Make the folder of a GPU's file, before the measurement that fills it.

    Raises:
        OSError: it cannot be written to.
    """
    with _locked(path(gpu)):
        pass


def path(gpu: str) -> Path:
    """The file for a kind of GPU.

    Example:
        >>> path("NVIDIA H200").name
        'nvidia-h200.json'
    """
    return _extension.cache_folder() / "tuning" / (re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json")


def made_for(gpu: str) -> dict[str, str]:
    """What a measurement holds for.

    Example:
        >>> list(made_for("NVIDIA H200"))
        ['gpu', 'torch', 'triton', 'driver', 'sources']
    """
    import triton  # its distribution has other names beside other builds of torch

    versions = {"torch": torch.__version__, "triton": triton.__version__}
    return {"gpu": gpu, **versions, "driver": _driver(), "sources": fingerprint(Path(__file__).parent)}


def fingerprint(package: Path) -> str:
    """A digest of the kernels, their launchers and the tables they are launched by."""
    digest = hashlib.sha256()
    sources = [*package.glob("*/*triton.py"), *package.glob("*_triton.py"), package / "_tuning.py"]
    for file in sorted(sources):
        digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:24]


def _driver() -> str:
    """The driver's version, as the system tells it."""
    for file in _DRIVERS:
        try:
            text = file.read_text()
        except OSError:
            continue
        number = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
        return number[0] if number else text.strip()
    return "unknown"
