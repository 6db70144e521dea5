"""Whole texts in windows."""

from __future__ import annotations

import pytest

from dllm.core.likelihood import LikelihoodConfig, Target, log_likelihoods, rolling_log_likelihoods, windows_of
from tests.models import MASK_ID, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("length", [1, 4, 5, 8, 9, 23])
@pytest.mark.parametrize("window, prefix", [(2, []), (2, [0]), (5, [0]), (5, []), (30, [0, 1])])
def test_every_token_is_predicted_once_after_as_much_as_fits(length, window, prefix):
    text = list(range(100, 100 + length))
    windows = windows_of(text, window, prefix)
    assert [token for _, target in windows for token in target] == text
    row = [*prefix, *text]
    done = len(prefix)
    for number, (context, target) in enumerate(windows):
        done += len(target)
        assert 1 <= len(target) and len(context) + len(target) <= window
        assert [*context, *target] == row[done - len(context) - len(target) : done]
        if number:
            assert len(context) + len(target) == min(window, len(text[: done - len(prefix)]))


def test_windows_are_those_of_the_harness():
    """The rule of lm-evaluation-harness, whose rows hold one token less than context and target together."""
    utils = pytest.importorskip("lm_eval.utils")
    for length in (1, 7, 8, 9, 30):
        text = list(range(length))
        theirs = map(utils.make_disjoint_window, utils.get_rolling_token_windows(text, -1, 7, 1))
        ours = windows_of(text, 8, [-1])
        assert [target for _, target in ours] == [tuple(target) for _, target in theirs]


def test_a_text_is_the_sum_over_its_windows():
    model, config = tiny("modernbert"), LikelihoodConfig(mc_num=16)
    texts = [list(range(5, 35)), [7, 8], list(range(40, 60))]
    heard = {}
    options = dict(window=12, prefix=[5], seeds=[1, 2, 3], mask_id=MASK_ID)
    found = rolling_log_likelihoods(model, texts, config, on_estimate=heard.__setitem__, **options)
    assert [heard[i] for i in range(3)] == found
    alone = [
        rolling_log_likelihoods(model, [text], config, **options | {"seeds": [seed]})[0]
        for seed, text in enumerate(texts, start=1)
    ]
    for a, b in zip(found, alone, strict=True):
        assert a.log_likelihood == pytest.approx(b.log_likelihood, rel=1e-5)
    (short,) = log_likelihoods(model, [Target([5], [7, 8])], config, mask_id=MASK_ID)
    assert found[1].log_likelihood == pytest.approx(short.log_likelihood, rel=1e-5)
    assert found[0].stderr > 0 and found[1].stderr == 0 and found[0].rows == 3 * 16


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(window=1), "window must be at least 2, got 1"),
        (dict(window=2, prefix=[5, 6]), "prefix must be shorter than the window of 2 tokens, got 2"),
        (dict(window=4, seeds=[1, 2]), "seeds must be one for each of 1 texts, got 2"),
        (dict(window=4, config=LikelihoodConfig(form="dream")), "prefix must hold a token"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        rolling_log_likelihoods(tiny("modernbert"), [[5, 6, 7]], mask_id=MASK_ID, **options)
    with pytest.raises(ValueError, match="a text must have at least one token, got none in text 1"):
        rolling_log_likelihoods(tiny("modernbert"), [[5], []], mask_id=MASK_ID, window=4)
