"""The journal of an evaluation: every answer is on disk as soon as it is there, so that a killed run goes on from it.

A journal is a folder with a file of JSON lines for each rank, to which lines are only ever appended. A line holds the
key of a request, its answer, and what the answer cost. A run reads the files of all ranks, also of an earlier run with
another number of them, and writes its own.

A line is written whole by one call of the operating system, so a process that is killed loses only the answer that it
was writing. If the machine itself goes down, the end of a file may be torn; the torn line is cut off.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_log = logging.getLogger("dllm.eval")


class Entry(NamedTuple):
    """One answered request.

    result: a text, or [log-likelihood, greedy].
    forwards: rows of the model that it took.
    tokens: generated tokens, or tokens of the target.
    seconds: wall time.
    stderr: of an estimated log-likelihood.
    """

    result: Any
    forwards: int
    tokens: int
    seconds: float
    stderr: float | None = None


class Journal:
    """The answers of earlier runs, and a file for those of this one.

    Args:
        folder: where the journal lies, made if need be; None: answers are kept in memory only.
        rank: of this process.

    Raises:
        OSError: the folder cannot be made, read or written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Journal(folder).write("key", Entry("42", 8, 4, 0.1))
        ...     Journal(folder).read("key").result
        '42'
    """

    def __init__(self, folder: str | Path | None, rank: int = 0):
        self.entries: dict[str, Entry] = {}
        self._file: int | None = None
        self._torn = False
        if folder is None:
            return
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"rank-{rank}.jsonl"
        for path in sorted(folder.glob("rank-*.jsonl")):
            self.entries |= _read(path)
        self._file = os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o644)
        _cut_torn_line(self._file)

    def read(self, key: str) -> Entry | None:
        """The entry under a key; None if there is none."""
        return self.entries.get(key)

    def write(self, key: str, entry: Entry) -> None:
        """Keep an entry, and append it to the file.

        Raises:
            OSError: the file cannot be written, as on a full disk; the entry is kept in memory.
        """
        self.entries[key] = entry
        if self._file is None:
            return
        line = json.dumps({"key": key} | entry._asdict(), ensure_ascii=False) + "\n"
        data = ("\n" * self._torn + line).encode("utf-8", "surrogatepass")
        self._torn = True  # until all of the line is there: the next one must not continue a part of it
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._torn = False

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)


def key_of(kind: str, arguments: Any, seed: int, settings: Mapping[str, Any], fingerprint: str) -> str:
    """The key of a request: a hash of its type, its arguments, its seed, the settings, and the model.

    Example:
        >>> key_of("generate_until", ["1 + 1 =", {}], 0, {"steps": 8}, "ab") != key_of(
        ...     "generate_until", ["1 + 1 =", {}], 0, {"steps": 9}, "ab"
        ... )
        True
    """
    content = json.dumps([kind, arguments, seed, dict(settings), fingerprint], sort_keys=True, default=str)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> dict[str, Entry]:
    """The entries of a file; lines that are not whole are left out, and so is one without an end, which is torn."""
    entries = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            values = json.loads(line.decode("utf-8", "surrogatepass"))
            key = values.pop("key")
            entry = Entry(**values)
            if not isinstance(key, str) or not _is_whole(entry):
                raise TypeError("a value of another type")
            entries[key] = entry
        except (UnicodeDecodeError, ValueError, TypeError, KeyError, AttributeError):
            _log.warning("%s, line %d is not whole: its request is run again", path, number)
    return entries


def _is_whole(entry: Entry) -> bool:
    """Whether every value has the type that it was written with."""

    def is_number(value: object, *types: type) -> bool:
        return isinstance(value, types) and not isinstance(value, bool)

    result = entry.result
    if isinstance(result, list):
        fits = len(result) == 2 and is_number(result[0], int, float) and isinstance(result[1], bool)
    else:
        fits = isinstance(result, str)
    costs = is_number(entry.forwards, int) and is_number(entry.tokens, int) and is_number(entry.seconds, int, float)
    return fits and costs and (entry.stderr is None or is_number(entry.stderr, int, float))


def _cut_torn_line(file: int) -> None:
    """Cut off what follows the last line end, so that the next line begins in a line of its own."""
    size = os.fstat(file).st_size
    end = size
    while end:
        begin = max(0, end - 2**16)
        found = os.pread(file, end - begin, begin).rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end != size:
        os.ftruncate(file, end)
