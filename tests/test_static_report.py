"""The static report: what it counts is what the operations' own formulae say, and its file is named a prediction."""

from __future__ import annotations

import pytest

from benchmarks import static_report
from dllm_kernels import _impl

pytestmark = pytest.mark.skipif(_impl.why_not_triton() is not None, reason=str(_impl.why_not_triton()))

H, V = 4096, 126464
FACTS_OF_A_ROW = 28  # bytes that a row's chunk or tile hands on


def test_one_read_of_the_logits():
    found = static_report.predict("gumbel_argmax", rows=1024, vocab=V)
    results = 1024 * (8 + 4 * 4)
    assert (found.bytes, found.flops, found.slots) == (1024 * V * 2 + results, 0, 0)
    assert found.l2_bytes == 2 * 1024 * -(-V // 8192) * FACTS_OF_A_ROW


def test_noise_costs_instructions_and_hardly_a_byte():
    cold, hot = (static_report.predict("gumbel_argmax", rows=64, vocab=V, temperature=t) for t in (0.0, 1.0))
    assert hot.slots == 16 * 64 * V
    assert 0 < hot.bytes - cold.bytes <= 64 * (3 * 8 + 4) + 4


def test_few_rows_read_the_head_once_and_keep_their_logits():
    found = static_report.predict("linear_gumbel_argmax", rows=16, hidden=H, vocab=V)
    read = 2 * H * (V + 16)
    assert read <= found.bytes <= read * 1.001 and found.l2_bytes < 2 * 16 * V
    assert found.flops == 2 * 16 * H * V


def test_many_rows_multiply_in_slices_whose_logits_stay_in_cache():
    found = static_report.predict("linear_gumbel_argmax", rows=1024, hidden=H, vocab=V)
    assert found.flops == 2 * 1024 * H * V
    assert 2 * H * V <= found.bytes <= 2 * H * V * 1.01
    assert found.l2_bytes > 2 * 2 * 1024 * V  # written and read


@pytest.mark.parametrize("rows", [1024, 4096])
def test_the_loss_is_three_products(rows):
    found = static_report.predict("linear_cross_entropy", rows=rows, hidden=H, vocab=V)
    assert found.flops == 6 * rows * H * V
    assert found.seconds >= found.flops / 989e12


def test_the_loss_of_given_logits_reads_and_writes_them_once():
    found = static_report.predict("masked_cross_entropy", rows=1024, vocab=V)
    assert 2 * 2 * 1024 * V <= found.bytes <= 2 * 2 * 1024 * V * 1.001


def test_ceilings_are_arguments():
    case = dict(rows=1024, vocab=V, temperature=1.0)
    faster = static_report.predict("gumbel_argmax", **case, bytes_per_second=1e15, slots_per_second=1e15)
    assert faster.seconds < static_report.predict("gumbel_argmax", **case).seconds / 10


@pytest.mark.parametrize(
    "wrong",
    [
        dict(op="softmax", rows=1, vocab=8),
        dict(op="gumbel_argmax", rows=1),
        dict(op="gumbel_argmax", rows=1, hidden=4, vocab=8),
        dict(op="gumbel_argmax", rows=1, vocab=8, dtype="float64"),
    ],
)
def test_wrong_cases_are_refused(wrong):
    with pytest.raises(ValueError):
        static_report.predict(wrong.pop("op"), **wrong)
