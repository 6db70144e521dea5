"""The loss of GRPO as functions of log-probabilities, and the advantages of completions within their group."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PolicyLoss(NamedTuple):
    """What :func:`policy_loss` returns, float32 [N] each, one number for a token.

    loss: differentiable with respect to the log-probabilities.
    kl: the estimate of the divergence from the reference; None without one.
    clipped: 1 where clipping removed the gradient of the ratio, else 0.
    """

    loss: Tensor
    kl: Tensor | None
    clipped: Tensor


def policy_loss(
    log_probs: Tensor,
    old: Tensor | None,
    reference: Tensor | None,
    advantages: Tensor,
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    beta: float = 0.0,
) -> PolicyLoss:
    r"""The clipped policy-gradient loss of each token, with a penalty for leaving a reference model.

    .. math::
        -\min\big(r A, \mathrm{clip}(r, 1 - \epsilon, 1 + \epsilon_{high}) A\big) + \beta (e^d - d - 1), \qquad
        r = e^{l - l_{old}}, \; d = l_{reference} - l

    Args:
        log_probs: l of the model that is trained, [N].
        old: l of the model that wrote the tokens, [N]; None if it is the one that is trained, so that r = 1.
        reference: l of the reference model, [N]; None for no penalty.
        advantages: A of each token's completion, [N].
        epsilon: how far below 1 the ratio r still has a gradient.
        epsilon_high: the same above 1; as epsilon if None.
        beta: weight of the penalty.

    Source: PPO (arXiv:1707.06347), GRPO (arXiv:2402.03300).

    Example:
        >>> l = torch.tensor([-1.0, -2.0], requires_grad=True)
        >>> policy_loss(l, None, None, torch.tensor([2.0, -1.0])).loss.sum().backward()
        >>> l.grad
        tensor([-2.,  1.])
    """
    ratio = (log_probs - (log_probs.detach() if old is None else old)).exp()
    bounded = ratio.clamp(1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high))
    loss = -torch.min(ratio * advantages, bounded * advantages)
    clipped = ((bounded * advantages < ratio * advantages) & (ratio != bounded)).float()
    if reference is None:
        return PolicyLoss(loss, None, clipped)
    difference = reference - log_probs
    kl = difference.expm1() - difference
    return PolicyLoss(loss + beta * kl, kl.detach(), clipped)


def group_advantages(rewards: Tensor, group_size: int, *, scaled: bool = False) -> Tensor:
    """The advantage of each completion: its reward less the mean of its group.

    Args:
        rewards: float [n], groups one after the other.
        group_size: completions of a prompt.
        scaled: divide by the standard deviation of the group plus 1e-4.

    Source: GRPO (arXiv:2402.03300); without the division Dr. GRPO (arXiv:2503.20783) and diffu-GRPO (arXiv:2504.12216).

    Example:
        >>> group_advantages(torch.tensor([1.0, 0.0, 5.0, 5.0]), 2)
        tensor([ 0.5000, -0.5000,  0.0000,  0.0000])
    """
    groups = rewards.view(-1, group_size)
    advantages = groups - groups.mean(1, keepdim=True)
    if scaled:
        advantages = advantages / (groups.std(1, keepdim=True) + 1e-4)
    return advantages.flatten()
