"""What tests and benchmarks share: float64 truths, an error budget derived from them, input makers, poisoned memory."""

from dllm_kernels.testing.budget import (
    assert_model_no_worse,
    assert_no_worse,
    assert_sum_no_worse,
    largest_allowed,
    operand_rounding,
)
from dllm_kernels.testing.cross_entropy import plain_cross_entropy
from dllm_kernels.testing.draws import (
    STATISTICS,
    assert_head_within_budget,
    assert_within_budget,
    draw_scores,
    measured_logits,
    plain_expected_embedding,
    plain_statistics,
    true_expected_embedding,
    true_gumbel_argmax,
    true_linear_gumbel_argmax,
)
from dllm_kernels.testing.inputs import make_head, make_logits, make_noise, make_rows
from dllm_kernels.testing.memory import poisoned_memory

__all__ = [
    "STATISTICS",
    "assert_head_within_budget",
    "assert_model_no_worse",
    "assert_no_worse",
    "assert_sum_no_worse",
    "assert_within_budget",
    "draw_scores",
    "largest_allowed",
    "make_head",
    "make_logits",
    "make_noise",
    "make_rows",
    "measured_logits",
    "operand_rounding",
    "plain_cross_entropy",
    "plain_expected_embedding",
    "plain_statistics",
    "poisoned_memory",
    "true_expected_embedding",
    "true_gumbel_argmax",
    "true_linear_gumbel_argmax",
]
