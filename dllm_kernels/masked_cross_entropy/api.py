"""Weighted cross-entropy of chosen rows of logits, with its gradient formed while the logits are read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dllm_kernels import _checks, _impl
from dllm_kernels.masked_cross_entropy import autograd, reference


class CrossEntropy(NamedTuple):
    """The result of a weighted cross-entropy; both fields can be differentiated.

    loss: float32 scalar, the sum over rows of row_weight x nll, divided by nothing.
    nll: float32 [R], nats, each row's loss without its weight; 0 where the weight is 0.
    """

    loss: Tensor
    nll: Tensor


def masked_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    inplace: bool = False,
    impl: str = "auto",
) -> CrossEntropy:
    r"""Cross-entropy of every row with a weight, and the weighted sum of them.

    .. math::
        l = \begin{cases} c \tanh(x / c) & \text{softcap } c \\ x & \text{else} \end{cases} \qquad
        lse_r = \log \sum_v e^{l_{rv}}

        nll_r = (1 - \varepsilon) (lse_r - l_{r, target_r}) + \varepsilon (lse_r - \tfrac1V \sum_v l_{rv})
                + \lambda\, lse_r^2, \qquad loss = \sum_r w_r\, nll_r

    The weights are known before the forward, so the gradient of `loss` is formed in it: one read and one write of the
    logits, and nothing in the backward where the upstream gradient is 1. Another one, also a different one for each
    row of `nll`, rescales the rows. Rows with weight 0 are never read; their gradient is 0. Arithmetic is float32
    whatever the dtype of the logits; nothing is read back from a device. The same arguments give the same bits.

    Memory beyond the arguments: R V elements of the logits' dtype for the gradient, none with `inplace`, none where no
    gradient is wanted; and O(R).

    A NaN, a +inf or no finite number among a row's logits make its nll and gradient NaN. -inf is probability 0.

    Args:
        logits: [R, V], float32, bfloat16 or float16; rows may have any stride, a row's tokens are adjacent.
        targets: int64 [R], from 0 to V - 1 where the weight is not 0 and any number elsewhere.
        row_weight: float32 [R], finite and at least 0, without gradient: w(t), the mask and every normaliser in one.
        label_smoothing: epsilon, from 0 to 1.
        z_loss: lambda, at least 0.
        softcap: c, above 0; None for none.
        inplace: the logits may be overwritten by their gradient; they hold nothing of use afterwards.
        impl: "auto", "reference", "triton" or "cpu"; an explicit one never falls back.

    Returns:
        :class:`CrossEntropy`.

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has run. Values are looked at on the CPU only:
            on other devices a label or weight that breaks its rule makes the row's nll and gradient NaN.
        RuntimeError: the implementation asked for is not available; or a second backward through one call.

    Source: the loss of MDLM (arXiv:2406.07524) and LLaDA (arXiv:2502.09992); z-loss as in PaLM (arXiv:2204.02311),
    softcap as in Gemma 2 (arXiv:2408.00118).

    Example:
        >>> logits = torch.zeros(3, 4, requires_grad=True)
        >>> loss, nll = masked_cross_entropy(logits, torch.tensor([1, -100, 2]), torch.tensor([2.0, 0.0, 0.5]))
        >>> loss.detach(), nll.detach()
        (tensor(3.4657), tensor([1.3863, 0.0000, 1.3863]))
        >>> loss.backward()
        >>> logits.grad[1:]
        tensor([[ 0.0000,  0.0000,  0.0000,  0.0000],
                [ 0.1250,  0.1250, -0.3750,  0.1250]])
    """
    _checks.tensor("logits", logits, dtypes=_checks.LOGIT_DTYPES, shape=("R", "V"))
    n_rows, vocab_size = logits.shape
    check_vocabulary("logits", vocab_size)
    if logits.stride(1) != 1 and vocab_size > 1:
        raise ValueError(f"logits must have adjacent tokens (stride 1 in the last dimension), got {logits.stride()}")
    if inplace and n_rows > 1 and logits.stride(0) < vocab_size:
        raise ValueError(f"logits to be overwritten must not overlap, got stride {logits.stride(0)} between rows")
    check_rows(targets, row_weight, logits.device)
    if targets.shape[0] != n_rows:
        raise ValueError(f"targets must have one entry for each of {n_rows} rows of logits, got {targets.shape[0]}")
    options = check_options(label_smoothing, z_loss, softcap)
    impl = _impl.choose(impl, logits.device)
    if impl == "reference":
        autograd.check_values(targets, row_weight, vocab_size)
        return CrossEntropy(*reference.masked_cross_entropy(logits, targets, row_weight, *options))
    return CrossEntropy(*autograd.masked_cross_entropy(logits, targets, row_weight, *options, inplace, impl))


def check_vocabulary(name: str, vocab_size: int) -> None:
    """At least one token, and few enough for the kernels' token counters."""
    if vocab_size == 0:
        raise ValueError(f"{name} must have at least one token, got a vocabulary of 0")
    if vocab_size > 2**31 - 2**16:
        raise ValueError(f"{name} must have fewer than 2^31 - 2^16 tokens, got {vocab_size}")


def check_rows(targets: Tensor, row_weight: Tensor, device: torch.device) -> None:
    """The two arguments that name rows."""
    _checks.tensor("targets", targets, dtypes=(torch.int64,), shape=("R",), device=device)
    _checks.tensor("row_weight", row_weight, dtypes=(torch.float32,), shape=(targets.shape[0],), device=device)
    if row_weight.requires_grad:
        raise ValueError("row_weight must not require a gradient: none is computed (detach it)")


def check_options(label_smoothing: float, z_loss: float, softcap: float | None) -> tuple[float, float, float | None]:
    """label_smoothing, z_loss and softcap as floats."""
    label_smoothing = _checks.finite_at_least_zero("label_smoothing", label_smoothing)
    if label_smoothing > 1:
        raise ValueError(f"label_smoothing must be at most 1, got {label_smoothing}")
    return label_smoothing, _checks.finite_at_least_zero("z_loss", z_loss), _checks.softcap(softcap)
