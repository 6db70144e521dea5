"""rolling_log_likelihoods: the log-likelihood of whole texts, for perplexity, in windows that a model can take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from torch import nn

from dllm.core.likelihood.config import Estimate, LikelihoodConfig, Target
from dllm.core.likelihood.estimate import log_likelihoods
from dllm_kernels import _checks, philox

_STRIDE = 0xBF58476D1CE4E5B9  # between the seeds of a text's windows


def rolling_log_likelihoods(
    model: nn.Module,
    texts: Sequence[Sequence[int]],
    config: LikelihoodConfig | None = None,
    *,
    window: int,
    prefix: Sequence[int] = (),
    seeds: Sequence[int] | None = None,
    tokenizer: object | None = None,
    mask_id: int | None = None,
    on_estimate: Callable[[int, Estimate], object] | None = None,
) -> list[Estimate]:
    """The log-likelihood of each text: every token is predicted once, in windows of at most `window` tokens.

    The windows are those of :func:`windows_of`. The estimate of a text is the sum over its windows.

    Args:
        model, config, tokenizer, mask_id: as of :func:`dllm.core.likelihood.log_likelihoods`.
        texts: token ids, at least one each.
        window: tokens of a row, at least 2.
        prefix: context of the first window, such as the beginning-of-text token; shorter than the window.
        seeds: of each text; 0 for all if None.
        on_estimate: called with a text's number and its estimate as soon as that is known.

    Raises:
        TypeError, ValueError: as of :func:`dllm.core.likelihood.log_likelihoods`; or `window` or `prefix` breaks a
            rule. In the form of Dream there must be a prefix: the first token of a row is never predicted there.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = BertForMaskedLM(BertConfig(**size))
        >>> text, = rolling_log_likelihoods(model, [[5, 6, 7, 8]], window=3, mask_id=4)
        >>> text.rows  # three tokens at first, then one after two of context
        8
    """
    config = LikelihoodConfig() if config is None else config
    seeds = [0] * len(texts) if seeds is None else list(seeds)
    if len(seeds) != len(texts):
        raise ValueError(f"seeds must be one for each of {len(texts)} texts, got {len(seeds)}")
    prefix = tuple(prefix)
    if isinstance(config, LikelihoodConfig) and config.form == "dream" and not prefix:
        raise ValueError("prefix must hold a token in the form of Dream, which never predicts the first of a row")
    targets, owners = [], []
    for number, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
        if len(text) == 0:
            raise ValueError(f"a text must have at least one token, got none in text {number}")
        for place, (context, target) in enumerate(windows_of(text, window, prefix)):
            targets.append(Target(context, target, (philox.as_int64(seed) + place * _STRIDE) % 2**64))
            owners.append(number)
    parts: list[list[Estimate]] = [[] for _ in texts]
    expected = Counter(owners)

    def collect(index: int, estimate: Estimate) -> None:
        number = owners[index]
        parts[number].append(estimate)
        if on_estimate is not None and len(parts[number]) == expected[number]:
            on_estimate(number, _summed(parts[number]))

    log_likelihoods(model, targets, config, tokenizer=tokenizer, mask_id=mask_id, on_estimate=collect)
    return [_summed(found) for found in parts]


def windows_of(
    text: Sequence[int], window: int, prefix: Sequence[int] = ()
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(context, target) of each window of a text: the rule of lm-evaluation-harness.

    The first window holds the prefix and as many tokens as fit. Each later one predicts `window` - 1 tokens after one
    of context. The last predicts what is left after as much context as fits.

    Raises:
        TypeError, ValueError: `window` is not an integer of at least 2, or the prefix leaves no room for a token.

    Example:
        >>> for context, target in windows_of([1, 2, 3, 4, 5, 6, 7], window=4, prefix=[0]):
        ...     print(context, target)
        (0,) (1, 2, 3)
        (3,) (4, 5, 6)
        (4, 5, 6) (7,)
    """
    if _checks.int64("window", window) < 2:
        raise ValueError(f"window must be at least 2, got {window}")
    if len(prefix) >= window:
        raise ValueError(f"prefix must be shorter than the window of {window} tokens, got {len(prefix)}")
    text, prefix = tuple(text), tuple(prefix)
    done = min(window - len(prefix), len(text))
    found = [(prefix, text[:done])]
    while done < len(text):
        stop = min(done + window - 1, len(text))
        found.append((text[max(stop - window, 0) : done], text[done:stop]))
        done = stop
    return found


def _summed(parts: Sequence[Estimate]) -> Estimate:
    """The estimate of a text from those of its windows, which are independent."""
    return Estimate(
        math.fsum(part.log_likelihood for part in parts),
        math.sqrt(math.fsum(part.stderr**2 for part in parts)),
        sum(part.rows for part in parts),
        None if any(part.greedy is None for part in parts) else all(part.greedy for part in parts),
        sum(part.cut for part in parts),
    )
