"""Edit Flows: training pairs on the way from x_0 to x_1, the edits that are left, and the loss of their rates."""

from dllm.core.editflow.edits import (
    DELETE,
    INSERT,
    SUBSTITUTE,
    Edits,
    edit_weight,
    noised_columns,
    remaining_edits,
    without_blanks,
)
from dllm.core.editflow.loss import EditTargets, edit_flow_loss, rows_of

__all__ = [
    "DELETE",
    "INSERT",
    "SUBSTITUTE",
    "EditTargets",
    "Edits",
    "edit_flow_loss",
    "edit_weight",
    "noised_columns",
    "remaining_edits",
    "rows_of",
    "without_blanks",
]
