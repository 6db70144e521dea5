"""Data where it lies: files, folders, saved data sets, the Hub; and what can be said of a file before it is read."""

from __future__ import annotations

import codecs
import csv
import gzip
import importlib.util
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dllm.configs import resolve_with_base_env
from dllm.data.formats import default_parts
from dllm.data.spec import Source

# Kinds of files, under the name of what reads them in the package datasets.
KINDS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}
_NOTES = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LAST_BYTES = 1 << 20


def open_source(source: Source, *, streaming: bool = False) -> Any:
    """All splits of a data set as they lie there: a DatasetDict, or an IterableDatasetDict of the package datasets.

    Raises:
        FileNotFoundError: there is no such file, folder or data set on the Hub.
        ConnectionError: the Hub cannot be reached.
        ImportError: the package datasets is not installed.
        ValueError: files that are empty, cut off, of no known kind or of several.
    """
    need_datasets()
    import datasets

    path = local_path(source.name)
    if path is not None and is_saved(path):
        return open_saved(path, streaming=streaming)
    parts = (source.part,) if source.part is not None else default_parts(source.name)
    found = [
        _from_hub(source.name, part, streaming) if path is None else _from_files(path, part, source.unit, streaming)
        for part in parts
    ]
    if len(found) == 1:
        return found[0]
    shared = [split for split in found[0] if all(split in part for part in found)]
    return type(found[0])({split: datasets.concatenate_datasets([part[split] for part in found]) for split in shared})


def open_saved(path: Path | str, *, streaming: bool = False) -> Any:
    """The splits of a data set that was saved by `save_to_disk`; one without splits is "train".

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: what is there is no saved data set, or a part of one.
    """
    need_datasets()
    import datasets

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no saved data set at {path}")
    if not is_saved(path):
        raise ValueError(f"{path} must be a data set that was saved by save_to_disk, got no state.json in it")
    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"the data set saved at {path} is not whole: {error}") from error
    splits = found if isinstance(found, datasets.DatasetDict) else datasets.DatasetDict(train=found)
    if not streaming:
        return splits
    return datasets.IterableDatasetDict({split: rows.to_iterable_dataset() for split, rows in splits.items()})


def local_path(name: str) -> Path | None:
    """Where a data set lies: as named, or in the folder that the environment variable BASE_DATASETS_DIR names; None if
    it can only be on the Hub.

    Raises:
        FileNotFoundError: it lies nowhere, and BASE_DATASETS_DIR is set or no data set of the Hub can have such a name.
    """
    under = ""
    try:
        path = Path(resolve_with_base_env(name, "BASE_DATASETS_DIR")).expanduser()
        if path.exists():
            return path
        if kind_of(path) is None and _HUB_NAME.fullmatch(name) and not name.startswith("."):
            return None
    except FileNotFoundError:
        under = f", nor under BASE_DATASETS_DIR={os.environ['BASE_DATASETS_DIR']}"
    raise FileNotFoundError(f"there is no file or folder {name} in {Path.cwd()}{under}")


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def kind_of(path: Path) -> str | None:
    """What reads a file, by its ending; .gz behind it does not count.

    Example:
        >>> kind_of(Path("train.jsonl.gz")), kind_of(Path("README.md"))
        ('json', None)
    """
    return KINDS.get(Path(path.stem).suffix if path.suffix == ".gz" else path.suffix)


def check_whole(path: Path) -> None:
    """Check what can be seen of a file from its two ends: that it is not empty, and not cut off while it was written.

    Raises:
        ValueError: it is.
    """
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path} is empty")
    _check_encoding(path)
    with path.open("rb") as file:
        first = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:4]
        file.seek(max(0, size - _LAST_BYTES))
        last = file.read().rstrip()
    if path.suffix == ".parquet" and not (first == last[-4:] == b"PAR1"):
        raise ValueError(f"{path} is no whole parquet file: written by half?")
    if path.suffix == ".json" and {b"[": b"]", b"{": b"}"}.get(first[:1], b"") != last[-1:]:
        raise ValueError(f"{path} does not end as JSON does: written by half?")
    seen = b"\n" in last or size <= _LAST_BYTES  # the whole of the last line
    if path.suffix == ".jsonl" and seen and (fault := _json_fault(last[last.rfind(b"\n") + 1 :])):
        raise ValueError(f"the last line of {path} is no {fault}: written by half?")


def need_datasets() -> None:
    """Check that the package datasets is there.

    Raises:
        ImportError: it is not.
    """
    if importlib.util.find_spec("datasets") is None:
        raise ImportError("datasets is not installed: pip install 'dllm[train]'")


def _from_hub(name: str, part: str | None, streaming: bool) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, part, streaming=streaming)
    except ConnectionError as error:
        raise ConnectionError(f"{name} is no file or folder here, and the Hub cannot be reached: {error}") from error


def _from_files(path: Path, part: str | None, unit: str, streaming: bool) -> Any:
    import datasets

    described = (path / "README.md").exists()  # says which files a part has
    if part is not None and not described:
        path, whole = path / part, path
        if not path.exists():
            raise ValueError(f"{whole} has no part {part!r}: expected a folder of that name in it")
    files = list(_data_files(path))
    for file in files:
        check_whole(file)
    kind = _one_kind(path, files)
    options = _reading(kind, files, unit)
    try:
        if path.is_file():
            found = datasets.load_dataset(kind, data_files=str(path), streaming=streaming, **options)
        else:
            found = datasets.load_dataset(str(path), part if described else None, streaming=streaming, **options)
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"{path} cannot be read: {_first_fault(files) or error.__cause__ or error}") from error
    # datasets 5 reads a packed text without the encoding that is asked for
    return found.map(_without_mark) if kind == "text" and any(map(_begins_with_mark, files)) else found


def _without_mark(row: dict[str, str]) -> dict[str, str]:
    return {name: text.removeprefix("\ufeff") for name, text in row.items()}


def _data_files(path: Path) -> Iterator[Path]:
    """The file, or those of a folder that hold data: neither hidden ones nor notes of the package datasets."""
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        hidden = any(name.startswith(".") for name in file.relative_to(path).parts)
        if file.is_file() and not hidden and file.name not in _NOTES and kind_of(file):
            yield file


def _one_kind(path: Path, files: list[Path]) -> str:
    kinds = {kind_of(file): file for file in files}
    expected = f"one of {', '.join(KINDS)}, perhaps with .gz"
    if not kinds:
        raise ValueError(f"a folder of data must hold files of {expected}; got none in {path}")
    if None in kinds:
        raise ValueError(f"a file of data must be {expected}, got {str(path)!r}")
    if len(kinds) > 1:
        some = ", ".join(str(file.relative_to(path)) for file in kinds.values())
        raise ValueError(f"files of a folder must be of one kind, got {some} in {path}")
    return next(iter(kinds))


def _reading(kind: str, files: list[Path], unit: str) -> dict[str, Any]:
    """How files are read: what a row of text is; a table's cells as the text that they are, 007 and NA too; and a byte
    order mark, as spreadsheets write it, is no text."""
    if kind == "text":
        return dict(sample_by=unit)
    options: dict[str, Any] = {}
    if kind != "parquet" and any(map(_begins_with_mark, files)):
        options["encoding"] = "utf-8-sig"
    if kind == "csv":
        import datasets

        text = datasets.Value("string")
        options["features"] = datasets.Features(dict.fromkeys(_header(files[0]), text))
        options["keep_default_na"] = False
    return options


def _header(path: Path) -> list[str]:
    """The names of a table's columns.

    Raises:
        ValueError: two of one name; a first row with more cells than that, which pandas would take for row names.
    """
    with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        try:
            table = csv.reader(lines)
            header = next(table, [])
            row = next((row for row in table if row), [])
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
    if twice := [column for number, column in enumerate(header) if column in header[:number]]:
        raise ValueError(f"{path} must have columns of different names, got {twice[0]!r} twice")
    if len(row) > len(header):
        raise ValueError(f"{path} must have {len(header)} cells in each row, got {len(row)} in the first: quote commas")
    return header


def _first_fault(files: list[Path]) -> str | None:
    """The first line of the files with a JSON object a line that is none."""
    for file in files:
        if file.suffix != ".jsonl":
            continue
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip() and (fault := _json_fault(line)):
                    return f"line {number} of {file} is no {fault}"
    return None


def _json_fault(text: bytes) -> str | None:
    """What a line is not."""
    try:
        json.loads(text)
    except UnicodeDecodeError:
        return "UTF-8"
    except ValueError:
        return "JSON"
    return None


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _check_encoding(path: Path) -> None:
    with _open(path) as file:
        try:
            first = file.read(4)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
    if kind_of(path) != "parquet" and first[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise ValueError(f"{path} must be UTF-8, got UTF-16: iconv -f UTF-16 -t UTF-8 rewrites it")


def _begins_with_mark(path: Path) -> bool:
    with _open(path) as file:
        return file.read(3) == codecs.BOM_UTF8
