"""Output folders that are created whole or not at all, and never over another one."""

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


def check_free(folder: Path) -> None:
    """Check that an output folder does not exist or is empty.

    Raises:
        ValueError: the folder exists and is not empty, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists: name another output, or remove it")
