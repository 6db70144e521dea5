"""Which modules of a model hold experts of a mixture as :func:`dllm_kernels.swiglu_experts` reads them."""

from __future__ import annotations

from torch import nn

# What experts may have besides, and the kernel has not.
OTHERWISE = ("has_bias", "is_transposed", "has_post_expert_norm", "_is_expert_parallel")


def has_swiglu_experts(module: nn.Module) -> bool:
    """Whether a module's experts are gated layers with SiLU and nothing else, each weight of all of them one parameter.

    That is how transformers 5 stores them: `gate_up_proj` [E, 2 I, H] and `down_proj` [E, H, I]. Its modules say the
    rest themselves.

    Example:
        >>> has_swiglu_experts(nn.Linear(2, 2))
        False
    """
    return (
        getattr(module, "has_gate", False)
        and getattr(module, "is_concatenated", True)
        and not any(getattr(module, name, False) for name in OTHERWISE)
        and type(getattr(module, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
        and getattr(getattr(type(module), "_apply_gate", None), "__name__", None) == "_default_apply_gate"
    )
