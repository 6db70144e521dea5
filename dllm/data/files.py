"""Opening data sets from files, folders, saved data sets or the Hub, with checks of the files before they are read."""

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

# By file extension: the builder of the package datasets that reads it.
KINDS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}
_METADATA_FILES = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LAST_BYTES = 1 << 20


def open_source(source: Source, *, streaming: bool = False) -> Any:
    """Open all splits of a data set, unchanged, as a `datasets.DatasetDict` or an `IterableDatasetDict`.

    Raises:
        FileNotFoundError: no such file, folder or data set on the Hub.
        ConnectionError: the Hub cannot be reached.
        ImportError: the package datasets is not installed.
        ValueError: files that are empty, truncated, of an unknown kind or of several kinds.
    """
    require_datasets()
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
    """Open a data set that was saved by `save_to_disk`. One without splits becomes the split "train".

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the folder is not a saved data set, or an incomplete one.
    """
    require_datasets()
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
    """The path of a data set: its name, or its name under the environment variable BASE_DATASETS_DIR. None if it can
    only be on the Hub.

    Raises:
        FileNotFoundError: no such path, and either BASE_DATASETS_DIR is set or the name is not valid on the Hub.
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
    """The builder that reads a file, by its extension; a trailing .gz is ignored.

    Example:
        >>> kind_of(Path("train.jsonl.gz")), kind_of(Path("README.md"))
        ('json', None)
    """
    return KINDS.get(Path(path.stem).suffix if path.suffix == ".gz" else path.suffix)


def check_complete(path: Path) -> None:
    """Check by the first and last bytes of a file that it is neither empty nor truncated.

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
    has_last_line = b"\n" in last or size <= _LAST_BYTES
    if path.suffix == ".jsonl" and has_last_line and (fault := _json_fault(last[last.rfind(b"\n") + 1 :])):
        raise ValueError(f"the last line of {path} is no {fault}: written by half?")


def require_datasets() -> None:
    """Check that the package datasets is installed.

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
        raise ConnectionError(
            f"{name} is not a local file or folder, and the Hub cannot be reached: {error}"
        ) from error


def _from_files(path: Path, part: str | None, unit: str, streaming: bool) -> Any:
    import datasets

    described = (path / "README.md").exists()  # the README lists the files of each part
    if part is not None and not described:
        path, whole = path / part, path
        if not path.exists():
            raise ValueError(f"{whole} has no part {part!r}: expected a folder of that name in it")
    files = list(_data_files(path))
    for file in files:
        check_complete(file)
    kind = _one_kind(path, files)
    options = _read_options(kind, files, unit)
    try:
        if path.is_file():
            found = datasets.load_dataset(kind, data_files=str(path), streaming=streaming, **options)
        else:
            found = datasets.load_dataset(str(path), part if described else None, streaming=streaming, **options)
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"{path} cannot be read: {_first_fault(files) or error.__cause__ or error}") from error
    # datasets 5 ignores the encoding for compressed text files
    return found.map(_without_byte_order_mark) if kind == "text" and any(map(_has_byte_order_mark, files)) else found


def _without_byte_order_mark(row: dict[str, str]) -> dict[str, str]:
    return {name: text.removeprefix("\ufeff") for name, text in row.items()}


def _data_files(path: Path) -> Iterator[Path]:
    """The file itself, or the data files of a folder: no hidden files, no metadata of the package datasets."""
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        hidden = any(name.startswith(".") for name in file.relative_to(path).parts)
        if file.is_file() and not hidden and file.name not in _METADATA_FILES and kind_of(file):
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


def _read_options(kind: str, files: list[Path], unit: str) -> dict[str, Any]:
    """Options of the builder: the unit of a text file's rows; table cells stay text (007, NA); a byte order mark, as
    spreadsheets write it, is removed."""
    if kind == "text":
        return dict(sample_by=unit)
    options: dict[str, Any] = {}
    if kind != "parquet" and any(map(_has_byte_order_mark, files)):
        options["encoding"] = "utf-8-sig"
    if kind == "csv":
        import datasets

        text = datasets.Value("string")
        options["features"] = datasets.Features(dict.fromkeys(_header(files[0]), text))
        options["keep_default_na"] = False
    return options


def _header(path: Path) -> list[str]:
    """The column names of a CSV file.

    Raises:
        ValueError: a repeated name, or a first row with more cells than names (pandas would read row names).
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
    """Describe the first line that is not valid JSON in the .jsonl files; None if there is none."""
    for file in files:
        if file.suffix != ".jsonl":
            continue
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip() and (fault := _json_fault(line)):
                    return f"line {number} of {file} is no {fault}"
    return None


def _json_fault(text: bytes) -> str | None:
    """The format that a line violates, UTF-8 or JSON; None if it is valid."""
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


def _has_byte_order_mark(path: Path) -> bool:
    with _open(path) as file:
        return file.read(3) == codecs.BOM_UTF8
