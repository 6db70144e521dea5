"""The checkpoint that a run resumes from, and checks that it is complete."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger("dllm")

_STATE = "trainer_state.json"
# A RuntimeError of torch.save whose message has one of these is a failed write.
_WRITE_ERROR_SIGNS = ("PytorchStreamWriter", "inline_container", "iostream")


def checkpoint_to_resume(wanted: str | bool | None, output_dir: str | Path) -> str | None:
    """The folder to resume from.

    Args:
        wanted: as `Trainer.train` takes it: a folder; True for the last complete checkpoint of `output_dir`; None or
            False for none.
        output_dir: of the run.

    Raises:
        ValueError: there is no complete checkpoint, or it holds weights only.

    Example:
        >>> checkpoint_to_resume(None, "out") is None
        True
    """
    if wanted is None or wanted is False:
        return None
    found = _last_complete(Path(output_dir)) if wanted is True else Path(wanted)
    if not _is_complete(found):
        raise ValueError(f"{found} is no whole checkpoint: its {_STATE} is missing or damaged")
    if not any(found.glob("rng_state*.pth")):
        raise ValueError(
            f"{found} holds weights only: the optimizer's state was not saved, so training cannot go on from it. "
            "Train with save_only_model=False to keep the optimizer in checkpoints"
        )
    return str(found)


@contextlib.contextmanager
def complete_or_removed(checkpoint: Path) -> Iterator[None]:
    """Remove a checkpoint whose writing, inside this context, fails or is interrupted.

    Raises:
        OSError: it cannot be written, because the disk is full, for example. torch raises a RuntimeError there.
    """
    # a state file left by an earlier run would mark the checkpoint as complete
    (checkpoint / _STATE).unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        cut_off = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _WRITE_ERROR_SIGNS)
        free = shutil.disk_usage(checkpoint.parent).free if cut_off else 0
        if not _is_complete(checkpoint):
            shutil.rmtree(checkpoint, ignore_errors=True)
        if cut_off:
            raise OSError(f"{checkpoint} could not be written, {free / 1e6:.0f} MB were free: {error}") from error
        raise


def _last_complete(output_dir: Path) -> Path:
    named = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output_dir.glob("checkpoint-*"))
    for _, path in sorted(((int(match[1]), path) for match, path in named if match), reverse=True):
        if _is_complete(path):
            return path
        _log.warning("%s was not written to its end and is passed over", path)
    raise ValueError(f"there is no whole checkpoint in {output_dir}")


def _is_complete(checkpoint: Path) -> bool:
    """Whether the trainer's state, which is written last, is there."""
    try:
        return "global_step" in json.loads((checkpoint / _STATE).read_text())
    except (OSError, ValueError):
        return False
