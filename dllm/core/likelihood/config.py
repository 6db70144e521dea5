"""The settings of a likelihood, what it is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dllm_kernels import _checks

ORDERS = ("ar_ftb", "ar_btf")  # front to back, back to front
LIKELIHOODS = ("exact", "as-published", *ORDERS)
FORMS = ("llada", "dream")
BLOCKS_FROM = ("row", "context")
IMPLS = ("auto", "reference", "triton", "cpu")
MAX_MASKS = 2**16  # of a target; an exact sum takes at most one less
PUBLISHED_ROWS = {"llada": 32, "dream": 1}  # of a batch


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """Settings of :func:`dllm.core.likelihood.log_likelihoods`.

    likelihood: "exact": the exact sum over masks where it is cheap, else a stratified estimate of the same sum.
        "as-published": the Monte-Carlo estimate of dLLM 0.1 and of the authors of LLaDA and Dream, with its mask sizes;
        only the random stream is another. "ar_ftb", "ar_btf": one row for each token, which predicts it from the tokens
        before it (front to back) or behind it (back to front), all others of the target being masked; these n terms
        sum up to the log-likelihood of decoding in that order, without any estimate.
    form: "llada" or "dream", how masks are weighted (:mod:`dllm.core.likelihood.weights`). In the form of Dream the
        first token of a row is never masked.
    mc_num: rows of a target for which the sum is estimated, from 1 to 65,536. None: 128 as published; 64 else, whose
        variance was 3 to 4 times smaller than that of 128 published rows (benchmarks/LOG.md).
    exact_up_to: the sum is exact for targets of so many tokens, at the price of 2^n - 1 rows, and for longer ones where
        this takes no more rows than `mc_num`. At most 16.
    batch_size: "as-published" only: rows of a published batch, over which mask sizes or times are spread evenly. It
        divides `mc_num`. None: 32 in the form "llada", 1 in the form "dream", but at most `mc_num`.
    sampling_eps: of the form "dream": times p are at least this; from 0 to below 1.
    cfg_scale: classifier-free guidance u + (cfg_scale + 1) (c - u), where u are the logits with the context masked.
    right_shift_logits: the logits of a position are those of the one before it; the first position reads its own. None:
        what the model's configuration says, and False where it says nothing.
    check_greedy: find out, too, whether greedy decoding gives the target: the surest masked token is set, one at a
        time.
    max_length: tokens of a row, at most. A longer one loses the beginning of its context. None: as many as the model
        has positions.
    blocks_from: for models that attend block by block: blocks are counted from the "row"'s first column, as in
        training, or from the end of the "context".
    cache: for models that attend block by block: keep keys and values of the text before a block.
    tokens_per_forward: rows times columns of a forward; None: chosen for the device.
    impl: kernels: "auto", "reference", "triton" or "cpu"; an explicit one never falls back.
    compile_body: the model's body through torch.compile: None where that works and pays for the number of forwards,
        True required, False never.

    Raises:
        TypeError, ValueError: a setting breaks a rule.

    Example:
        >>> LikelihoodConfig(mc_num=100, likelihood="as-published")
        Traceback (most recent call last):
        ...
        ValueError: mc_num must be a multiple of batch_size, got 100 and 32
    """

    likelihood: str = "exact"
    form: str = "llada"
    mc_num: int | None = None
    exact_up_to: int = 6
    batch_size: int | None = None
    sampling_eps: float = 1e-3
    cfg_scale: float = 0.0
    right_shift_logits: bool | None = None
    check_greedy: bool = False
    max_length: int | None = None
    blocks_from: str = "row"
    cache: bool = True
    tokens_per_forward: int | None = None
    impl: str = "auto"
    compile_body: bool | None = None

    def __post_init__(self) -> None:
        choices = {"likelihood": LIKELIHOODS, "form": FORMS, "blocks_from": BLOCKS_FROM, "impl": IMPLS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("mc_num", "batch_size", "max_length", "tokens_per_forward"):
            value = getattr(self, name)
            if value is not None and _checks.int64(name, value) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.mc_num is not None and self.mc_num > MAX_MASKS:
            raise ValueError(f"mc_num must be at most {MAX_MASKS}, got {self.mc_num}")
        if not 0 <= _checks.int64("exact_up_to", self.exact_up_to) <= 16:
            raise ValueError(f"exact_up_to must be from 0 to 16, got {self.exact_up_to}")
        if _checks.finite_at_least_zero("sampling_eps", self.sampling_eps) >= 1:
            raise ValueError(f"sampling_eps must be below 1, got {self.sampling_eps}")
        _checks.finite_at_least_zero("cfg_scale", self.cfg_scale)
        for name in ("check_greedy", "cache", "right_shift_logits", "compile_body"):
            value = getattr(self, name)
            if not (isinstance(value, bool) or (name in ("right_shift_logits", "compile_body") and value is None)):
                raise TypeError(f"{name} must be True or False, got {value!r}")
        if self.likelihood == "as-published" and self.masks % self.published_rows:
            raise ValueError(f"mc_num must be a multiple of batch_size, got {self.masks} and {self.published_rows}")

    @property
    def masks(self) -> int:
        """Rows of a target for which the sum is estimated."""
        if self.mc_num is not None:
            return self.mc_num
        return 128 if self.likelihood == "as-published" else 64

    @property
    def published_rows(self) -> int:
        """Rows of a published batch."""
        return min(PUBLISHED_ROWS[self.form], self.masks) if self.batch_size is None else self.batch_size


class Target(NamedTuple):
    """A text whose likelihood is asked for, after a context.

    context: token ids before it; there may be none.
    target: token ids, at least one.
    seed: of the masks, any integer of 64 bits. Targets of one length and one seed get the same masks (common random
        numbers), so that the noise of choices of one question is alike.
    after: token ids behind the target, which are visible and never masked (Dream's end of text).

    Example:
        >>> Target([5, 6], [7]).after
        ()
    """

    context: Sequence[int]
    target: Sequence[int]
    seed: int = 0
    after: Sequence[int] = ()


class Estimate(NamedTuple):
    """The log-likelihood of a target.

    log_likelihood: in nats.
    stderr: its standard error; 0 where the sum is exact, NaN where one row does not tell.
    rows: different rows of the model that it was read from. Targets share rows that are equal, each of which runs once.
    greedy: whether greedy decoding gives the target; None where that was not asked for.
    cut: tokens that its context lost on the left, because the row was too long.

    Example:
        >>> Estimate(log_likelihood=-2.5, stderr=0.0, rows=1).greedy is None
        True
    """

    log_likelihood: float
    stderr: float
    rows: int
    greedy: bool | None = None
    cut: int = 0
