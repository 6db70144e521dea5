"""RND1 (30B-A3B)."""

from dllm.core.samplers import RND1Sampler, RND1SamplerConfig
from dllm.pipelines.official import OfficialConfig, OfficialModel


class RND1Config(OfficialConfig):
    """The configuration of RND1: Qwen3-MoE's fields and `mask_token_id`. No field has a default."""

    model_type = "rnd1"
    family = "rnd1"


class RND1LM(OfficialModel):
    """RND1, as a Qwen3-MoE of transformers that attends to all positions. Its logits are shifted to the right."""

    config_class = RND1Config


__all__ = ["RND1LM", "RND1Config", "RND1Sampler", "RND1SamplerConfig"]
