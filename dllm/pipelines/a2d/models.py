"""Official names of A2D models and their configurations."""

from dllm.pipelines.official import OfficialConfig, OfficialModel


class A2DLlamaConfig(OfficialConfig):
    """The configuration of an A2D model made from a Llama: Llama's fields."""

    model_type = "a2d-llama"
    family = "a2d"
    base_type = "llama"


class A2DQwen2Config(OfficialConfig):
    """The configuration of an A2D model made from a Qwen2 or Qwen2.5: Qwen2's fields."""

    model_type = "a2d-qwen2"
    family = "a2d"
    base_type = "qwen2"


class A2DQwen3Config(OfficialConfig):
    """The configuration of an A2D model made from a Qwen3: Qwen3's fields."""

    model_type = "a2d-qwen3"
    family = "a2d"
    base_type = "qwen3"


class A2DLlamaLMHeadModel(OfficialModel):
    """A Llama of transformers that attends to all positions."""

    config_class = A2DLlamaConfig


class A2DQwen2LMHeadModel(OfficialModel):
    """A Qwen2 of transformers that attends to all positions."""

    config_class = A2DQwen2Config


class A2DQwen3LMHeadModel(OfficialModel):
    """A Qwen3 of transformers that attends to all positions."""

    config_class = A2DQwen3Config
