"""Models of Edit Flows: any backbone of this library with heads for the rates and the tokens of edits."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from transformers.utils import ModelOutput

from dllm.fast.head.split import output_head
from dllm.fast.model import MARKER
from dllm.fast.training.edit_loss import EditFlowLoss, EditTargets, edit_flow_loss
from dllm.models.classes import auto_class, made_bidirectional
from dllm.models.families import family_of
from dllm.models.official import marker_of

# The model type of each backbone: by its family where a checkpoint was mapped, else by its model type.
BACKBONES = ("modernbert", "llada", "dream", "qwen2", "qwen3")
_SHIFTED = ("dream",)
# Fields of the backbone's configuration that whoever asks a model for its size or its tokens reads.
_SIZES = ("hidden_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "vocab_size")
_TOKENS = ("bos_token_id", "eos_token_id", "mask_token_id", "pad_token_id")


class EditFlowConfig(transformers.PretrainedConfig):
    """The configuration of a model of Edit Flows: that of its backbone, and whether substitutions are shifted.

    Args:
        backbone_config: a configuration of transformers, or its fields with `model_type`.
        right_shift: substitutions and deletions at p are read at p - 1; by default as Dream's are.
        fields: others, as of every configuration.

    Raises:
        ValueError: no model of Edit Flows has such a backbone.

    Example:
        >>> size = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
        >>> config = EditFlowConfig(transformers.ModernBertConfig(**size))
        >>> config.backbone, config.vocab_size, config.right_shift
        ('modernbert', 9, False)
    """

    model_type = "editflow"
    has_no_defaults_at_init = True

    def __init__(self, backbone_config: Any = None, right_shift: bool | None = None, **fields: Any):
        if isinstance(backbone_config, Mapping):
            given = dict(backbone_config)
            backbone_config = transformers.AutoConfig.for_model(given.pop("model_type"), **given)
        self.backbone_config = backbone_config
        if backbone_config is not None:
            self.backbone = backbone_of(backbone_config)
            backbone_config.tie_word_embeddings = False  # there is no head that could be tied
            family = marker_of(backbone_config).get("family") or getattr(family_of(self.backbone), "name", None)
            if family is not None:
                fields.setdefault(MARKER, {"family": family})
            for name in _TOKENS:
                fields.setdefault(name, getattr(backbone_config, name, None))
            right_shift = self.backbone in _SHIFTED if right_shift is None else right_shift
        self.right_shift = right_shift
        super().__init__(**fields | dict(tie_word_embeddings=False))
        for name in _SIZES if backbone_config is not None else ():
            setattr(self, name, getattr(backbone_config, name, None))
        self.mask_token_id, marker = fields.get("mask_token_id"), fields.get(MARKER)
        if marker is not None:
            setattr(self, MARKER, marker)


@dataclass
class EditFlowOutput(ModelOutput):
    """What a model of Edit Flows returns: with `edits` a loss, else rates and logits of all positions.

    loss: [], differentiable. FSDP rounds it to the dtype of the model, but not the values in exact.
    exact: :class:`~dllm.fast.training.edit_loss.EditFlowLoss`, detached.
    ins_logits, sub_logits: [B, L, V], of tokens that are inserted behind a position, or put in its place.
    sub_rate_hat, del_rate_hat, ins_rate_hat: float32 [B, L], rates before they are multiplied by w(t).
    """

    loss: Tensor | None = None
    exact: EditFlowLoss | None = None
    ins_logits: Tensor | None = None  # the first of the logits, as it is never shifted: tests of visibility read it
    sub_logits: Tensor | None = None
    sub_rate_hat: Tensor | None = None
    del_rate_hat: Tensor | None = None
    ins_rate_hat: Tensor | None = None


class NoHead(nn.Identity):
    """Stands where a backbone had its LM head. Its empty weight is for transformers 4, which initialises that of a
    ModernBERT's head by name."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.empty(0, 1), persistent=False)


class EditFlowModel(transformers.PreTrainedModel):
    r"""A backbone without its LM head, with heads for edits on what that head would read.

    .. math::
        r_p = \mathrm{softplus}(W h_p + b) \in \mathbb{R}^3, \qquad
        Q^{sub}_p = \mathrm{softmax}(W_{sub} h_p), \quad Q^{ins}_p = \mathrm{softmax}(W_{ins} h_p)

    The rates are in the order substitute, delete, insert. With `config.right_shift` (Dream) those of substitutions and
    deletions, and the logits of substitutions, are read one position before, and are 0 at the first position.

    A folder that `save_pretrained` writes is loaded by :func:`dllm.models.get_model`, by `from_pretrained`, and by
    AutoModel once :mod:`dllm.models` is imported. LoRA trains the modules that `new_modules` names in full.

    Args:
        config: :class:`EditFlowConfig`. All weights are random; :meth:`from_backbone` takes over those of a model.

    Raises:
        ValueError: the configuration has no backbone.

    Source: Edit Flows (arXiv:2506.09018); names of the heads and outputs are those of dLLM 0.1.

    Example:
        >>> size = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=90)
        >>> special = dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id"), 0)
        >>> config = transformers.ModernBertConfig(**size, **special, cls_token_id=0, sep_token_id=0)
        >>> model = EditFlowModel(EditFlowConfig(config))
        >>> model(torch.tensor([[5, 6, 7]])).ins_rate_hat.shape
        torch.Size([1, 3])
    """

    config_class = EditFlowConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flash_attn_2 = _supports_flex_attn = True
    _supports_attention_backend = True
    new_modules: ClassVar[tuple[str, ...]] = ("sub_logits", "ins_logits", "rate_heads")

    def __init__(self, config: EditFlowConfig):
        if config.backbone_config is None:
            raise ValueError("the configuration of a model of Edit Flows must have a backbone_config, got none")
        super().__init__(config)
        backbone, head = _random_backbone(config)
        self.backbone = backbone
        self.sub_logits, self.ins_logits = copy.deepcopy(head), copy.deepcopy(head)
        self.rate_heads = nn.Linear(head.in_features, 3)
        self.post_init()

    @classmethod
    def from_backbone(cls, backbone: nn.Module) -> EditFlowModel:
        """The model of Edit Flows whose body is this model, whose LM head becomes both heads of tokens.

        Args:
            backbone: a masked language model, as :func:`dllm.models.get_model` loads it. Its LM head is taken away.

        Returns:
            The model, on the device and in the dtype of the backbone.

        Raises:
            ValueError: no model of Edit Flows has such a backbone, or its head is no plain linear layer.
        """
        backbone_of(backbone.config)
        head = output_head(backbone)
        if type(head) is not nn.Linear:
            raise ValueError(f"the LM head must be an nn.Linear to begin heads from, got {type(head).__name__}")
        # a copy, as making a model sets dtype and attention in the configuration that it is given
        config = class_for(backbone.config).config_class(copy.deepcopy(backbone.config))
        config._attn_implementation = backbone.config._attn_implementation
        with torch.device("meta"):
            model = class_for(backbone.config)(config)
        place = dict(device=head.weight.device, dtype=head.weight.dtype)
        rate_heads = nn.Linear(head.in_features, 3, **place)
        nn.init.normal_(rate_heads.weight, std=0.02)
        nn.init.zeros_(rate_heads.bias)
        model.backbone = _without_head(backbone, head)
        model.sub_logits, model.ins_logits, model.rate_heads = _copied(head), _copied(head), rate_heads
        return model.train(backbone.training)

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None = None, **context: Any) -> Tensor:
        """What the heads read, [B, L, H].

        Args:
            input_ids: int64 [B, L].
            attention_mask, context: further arguments of the backbone.
        """
        if attention_mask is not None:
            context["attention_mask"] = attention_mask
        return self.backbone(input_ids=input_ids, **context).logits

    def rates(self, hidden: Tensor) -> Tensor:
        """The rates of hidden states [B, L, H], float32 [B, L, 3], in the order substitute, delete, insert."""
        rates = nn.functional.softplus(self.rate_heads(hidden).float())
        if not self.config.right_shift:
            return rates
        return torch.cat([_shifted(rates[..., :2]), rates[..., 2:]], dim=-1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        t: Tensor | None = None,
        edits: EditTargets | None = None,
        **context: Any,
    ) -> EditFlowOutput:
        """Rates and logits of all positions; or, with `edits`, the loss of these alone.

        Args:
            input_ids: int64 [B, L], texts x_t.
            attention_mask: as the backbone takes it.
            t: not used, as rates do not depend on the time; scripts for dLLM 0.1 pass it.
            edits: the edits that are left.
            context: further arguments of the backbone.
        """
        hidden = self.hidden_states(input_ids, attention_mask, **context)
        rates = self.rates(hidden)
        if edits is not None:
            heads, shift = (self.sub_logits, self.ins_logits), bool(self.config.right_shift)
            found = edit_flow_loss(hidden, rates, *heads, edits, right_shift=shift)
            return EditFlowOutput(loss=found.loss, exact=EditFlowLoss(found.loss.detach(), found.of_samples))
        sub = self.sub_logits(hidden)
        return EditFlowOutput(
            ins_logits=self.ins_logits(hidden),
            sub_logits=_shifted(sub) if self.config.right_shift else sub,
            sub_rate_hat=rates[..., 0],
            del_rate_hat=rates[..., 1],
            ins_rate_hat=rates[..., 2],
        )

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the backbone."""
        return self.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The head of substitutions."""
        return self.sub_logits


def backbone_of(config: transformers.PretrainedConfig) -> str:
    """The name of a backbone by its configuration: its family, or its model type.

    Raises:
        ValueError: no model of Edit Flows has such a backbone.

    Example:
        >>> backbone_of(transformers.Qwen3Config())
        'qwen3'
    """
    family = marker_of(config).get("family")
    name = family if family in BACKBONES else config.model_type
    if name not in BACKBONES:
        raise ValueError(f"a model of Edit Flows must have a backbone of {', '.join(BACKBONES)}, got {name}")
    return name


def class_for(config: transformers.PretrainedConfig) -> type[EditFlowModel]:
    """The class of Edit Flows for a backbone's configuration.

    Raises:
        ValueError: there is none.

    Example:
        >>> class_for(transformers.Qwen2Config()).config_class.model_type
        'editflow-qwen2'
    """
    return class_of(backbone_of(config))


def class_of(backbone: str) -> type[EditFlowModel]:
    """The class of Edit Flows on a backbone of this name.

    Raises:
        ValueError: there is none.

    Example:
        >>> class_of("dream").__name__
        'EditFlowDreamModel'
    """
    if backbone not in _CLASSES:
        raise ValueError(f"a model of Edit Flows must have a backbone of {', '.join(BACKBONES)}, got {backbone}")
    return _CLASSES[backbone]


def _random_backbone(config: EditFlowConfig) -> tuple[nn.Module, nn.Module]:
    """The backbone with random weights and without its head, and that head."""
    options = dict(dtype=torch.get_default_dtype())  # transformers has set it to that of the whole model
    if (attention := getattr(config, "_attn_implementation", None)) is not None:
        options["attn_implementation"] = attention
    backbone = made_bidirectional(auto_class(config.backbone_config).from_config(config.backbone_config, **options))
    head = output_head(backbone)
    return _without_head(backbone, head), head


def _without_head(backbone: nn.Module, head: nn.Module) -> nn.Module:
    """The model, in place, without its head: its logits are the head's input."""
    names = [name for name, module in backbone.named_modules() if module is head]
    for name in names:
        owner, _, last = name.rpartition(".")
        setattr(backbone.get_submodule(owner), last, NoHead())
    backbone.config.tie_word_embeddings = False
    return backbone


def _copied(head: nn.Linear) -> nn.Linear:
    """A head of its own with the same weights, which may be those of an embedding."""
    made = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
    for name, parameter in head.named_parameters():
        setattr(made, name, nn.Parameter(parameter.detach().clone()))
    return made


def _shifted(values: Tensor) -> Tensor:
    """[B, L, ...] one position to the right, 0 at the first."""
    return torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], dim=1)


def _make_class(backbone: str) -> type[EditFlowModel]:
    """The class of one backbone, with a configuration of its own model type, known to transformers' auto classes."""
    name = {"modernbert": "ModernBert", "llada": "LLaDA"}.get(backbone, backbone.capitalize())
    # transformers 5 makes a dataclass, with another __init__, of every configuration without an __init__ of its own
    fields = {"model_type": f"editflow-{backbone}", "__init__": EditFlowConfig.__init__, "__module__": __name__}
    config = type(f"EditFlow{name}Config", (EditFlowConfig,), fields)
    model = type(f"EditFlow{name}Model", (EditFlowModel,), {"config_class": config, "__module__": __name__})
    transformers.AutoConfig.register(config.model_type, config)
    for auto in (transformers.AutoModel, transformers.AutoModelForMaskedLM):
        auto.register(config, model)
    return model


_CLASSES = {backbone: _make_class(backbone) for backbone in BACKBONES}
