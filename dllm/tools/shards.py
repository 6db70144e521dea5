"""Making and saving samples shard by shard, so that an interrupted run continues where it stopped.

During the run, OUTPUT.partial holds the settings and one parquet file per finished shard; a file gets its name only
when it is complete. At the end OUTPUT is created in one step, in the format of `save_to_disk`, and OUTPUT.partial is
removed.
"""

from __future__ import annotations

import itertools
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dllm.data.splits import row_count
from dllm.tools.command import check_free, held_interrupts, whole_folder

# The file with the settings, in OUTPUT and OUTPUT.partial.
NOTE = "preprocessing.json"


def save_samples(
    load: Callable[[], Mapping[str, Any]],
    to_samples: Callable[[Any], Any],
    output: Path,
    *,
    settings: Mapping[str, Any],
    shard_rows: int,
) -> str:
    """Make samples of all rows and save them, or continue an interrupted run.

    Args:
        load: returns the splits, data sets or streams of the package datasets; not called if everything is done.
        to_samples: converts a data set of at most `shard_rows` rows to samples.
        output: folder to create, for `load_sft_dataset(..., load_preprocessed_data=True)` and `load_pt_dataset`.
        settings: everything that the samples depend on, as JSON types.
        shard_rows: rows per shard, and the most rows that an interruption loses.

    Returns:
        A line that says what was done.

    Raises:
        ValueError: the output exists, or was begun with other settings; or there are no samples.
    """
    settings = {**settings, "shard_rows": shard_rows}
    if _settings_at(output) == settings:
        return f"{output} is there already"
    check_free(output)
    partial = output.with_name(f"{output.name}.partial")
    _check_same_settings(partial, settings)
    splits = load()
    if not partial.exists():
        with whole_folder(partial) as folder:
            (folder / NOTE).write_text(json.dumps(settings, indent=1), encoding="utf-8")
    counts = {split: _make_shards(split, rows, to_samples, partial, shard_rows) for split, rows in splits.items()}
    _join_shards(counts, partial, output, settings)
    return f"{output}: " + ", ".join(f"{count} samples of {split}" for split, count in counts.items())


def no_cache_options() -> dict[str, Any]:
    """Options of `map` that turn off its cache and the hash for it; shards serve as the cache."""
    return dict(keep_in_memory=True, new_fingerprint=uuid.uuid4().hex[:16])


def _settings_at(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _check_same_settings(partial: Path, settings: Mapping[str, Any]) -> None:
    """Check that an earlier run had the same settings; remove its folder if it finished no shard."""
    if not partial.exists() or _settings_at(partial) == settings:
        return
    if any(partial.glob("*/*.parquet")):
        raise ValueError(f"{partial} was begun with other settings: remove it, or name another output")
    shutil.rmtree(partial)


def _make_shards(split: str, rows: Any, to_samples: Callable[[Any], Any], partial: Path, shard_rows: int) -> int:
    """Make the missing shards of a split; returns the number of samples in all its shards."""
    from tqdm.auto import tqdm

    folder = partial / split
    folder.mkdir(exist_ok=True)
    done = len(_shards(folder))
    count = row_count(rows)
    before = done * shard_rows if count is None else min(done * shard_rows, count)
    with tqdm(desc=split, unit=" rows", total=count, initial=before) as bar:
        for number, shard in enumerate(_row_groups(rows, done * shard_rows, shard_rows), start=done):
            with _one_progress_bar(), held_interrupts():
                _write(to_samples(shard), folder / f"{number:05}.parquet")
            bar.update(shard.num_rows)
    samples = _read(folder, partial)
    return 0 if samples is None else samples.num_rows


def _row_groups(rows: Any, start: int, size: int) -> Iterator[Any]:
    """The rows from `start` on, in data sets of `size` rows; the last may be smaller."""
    import datasets

    count = row_count(rows)
    if count is not None:
        for first in range(start, count, size):
            yield rows.select(range(first, min(first + size, count)))
        return
    stream = iter(rows.skip(start) if start else rows)
    while group := list(itertools.islice(stream, size)):
        yield datasets.Dataset.from_list(group)


def _write(samples: Any, path: Path) -> None:
    """Write a shard atomically: under another name first. A shard without samples is an empty file."""
    growing = path.with_suffix(".growing")
    if samples.num_rows:
        samples.to_parquet(str(growing))
    else:
        growing.touch()
    growing.rename(path)


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def _read(folder: Path, partial: Path) -> Any:
    import datasets

    files = [str(path) for path in _shards(folder) if path.stat().st_size]
    with _one_progress_bar():
        return datasets.Dataset.from_parquet(files, cache_dir=str(partial / "cache")) if files else None


def _join_shards(counts: Mapping[str, int], partial: Path, output: Path, settings: Mapping[str, Any]) -> None:
    import datasets

    empty = [split for split, count in counts.items() if not count]
    if empty or not counts:
        shutil.rmtree(partial)
        raise ValueError(f"no samples came out of the rows of {', '.join(empty) or 'no split at all'}")
    splits = datasets.DatasetDict({split: _read(partial / split, partial) for split in counts})
    with whole_folder(output, partial / "whole") as folder, _one_progress_bar():
        splits.save_to_disk(str(folder))
        (folder / NOTE).write_text(json.dumps(settings, indent=1), encoding="utf-8")
    shutil.rmtree(partial)


@contextmanager
def _one_progress_bar() -> Iterator[None]:
    """Turn off the progress bars of the package datasets: one bar for all shards is enough."""
    import datasets.utils as bars

    if bars.are_progress_bars_disabled():
        yield
        return
    bars.disable_progress_bars()
    try:
        yield
    finally:
        bars.enable_progress_bars()
