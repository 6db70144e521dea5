"""Whether a forward records gradients, and whether it runs inside a gradient checkpoint, which runs it again in the
backward."""

from __future__ import annotations

import torch


def checkpoint_around() -> object:
    """The pack hook of the innermost gradient checkpoint that is not reentrant, None outside of one. A reentrant one
    runs its forward without gradients.

    Example:
        >>> checkpoint_around() is None
        True
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    of_checkpoint = hooks and getattr(hooks[0], "__module__", None) == "torch.utils.checkpoint"
    return hooks[0] if of_checkpoint else None


def autograd_state() -> tuple[bool, object]:
    """Whether gradients are recorded, and the innermost gradient checkpoint, None outside of one.

    Example:
        >>> with torch.no_grad():
        ...     autograd_state()
        (False, None)
    """
    return torch.is_grad_enabled(), checkpoint_around()
