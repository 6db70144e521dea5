"""Output folders: created whole or not at all, never over another one, and known to be writable beforehand."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(folder: Path, building: Path | None = None) -> Iterator[Path]:
    """A temporary folder to write into. It is renamed to `folder` on success, and removed on failure.

    Args:
        folder: the final path; it must not exist, or be empty.
        building: path of the temporary folder, on the same disk; by default beside `folder`.

    Raises:
        ValueError: `folder` is not empty.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     with whole_folder(Path(place) / "made") as folder:
        ...         _ = (folder / "a.txt").write_text("all of it")
        ...     [path.name for path in (Path(place) / "made").iterdir()]
        ['a.txt']
    """
    check_free(folder)
    building = building or folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        yield building
        if folder.exists():
            folder.rmdir()
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Check that an output folder, which may not exist yet, can be written into. Nothing is written.

    Raises:
        OSError: it cannot, as a folder above it is read-only or a file, for example.

    Example:
        >>> check_writable(Path("/dev/null/out"))
        Traceback (most recent call last):
        ...
        NotADirectoryError: /dev/null/out cannot be written: /dev/null is no folder
    """
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{folder} cannot be written: {above} is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written: {above} is read-only for this user")


def check_free(folder: Path) -> None:
    """Check that an output folder does not exist or is empty.

    Raises:
        ValueError: the folder exists and is not empty, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists: name another output, or remove it")
