"""The bundled model's tokenizer: byte-level BPE in which every number of the word problems is one token.

Unknown text is encoded as bytes. The tags of BERT-chat's template include the line breaks around them, so the template
costs two tokens per message:

    [Question]
    How are you?
    [/Question]

    [Answer]
    I am fine.
    [/Answer]
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dllm.models.families import BERT_CHAT

MASK, END_OF_ANSWER = "[MASK]", "[/Answer]"
# each tag swallows the white space on these sides
TAGS = {
    "[Question]": {"rstrip": True},
    "[/Question]": {"lstrip": True, "rstrip": True},
    "[Answer]": {"rstrip": True},
    END_OF_ANSWER: {"lstrip": True, "rstrip": True},
    "[SYS]": {"rstrip": True},
    "[/SYS]": {"lstrip": True, "rstrip": True},
}


def build_tokenizer(
    texts: Iterable[str], vocab_size: int, largest_number: int, max_length: int
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on `texts`; the numbers 0 to `largest_number` become one token each.

    Example:
        >>> tokenizer = build_tokenizer(["How are you?"] * 9, 512, 20, 64)
        >>> tokenizer.decode(tokenizer("12 ants").input_ids).strip()
        '12 ants'
    """
    numbers = " ".join(str(number) for number in range(largest_number + 1))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[MASK, *TAGS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # BPE merges the most frequent pairs first: repeated this often, numbers come before any word
    texts = list(texts)
    backend.train_from_iterator([*texts, *[numbers] * (len(texts) + 1)], trainer)
    backend.add_special_tokens([AddedToken(tag, normalized=False, **sides) for tag, sides in TAGS.items()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        add_prefix_space=True,  # written to tokenizer_config.json; without it transformers 4.57 resets it to False
        mask_token=MASK,
        eos_token=END_OF_ANSWER,
        pad_token=END_OF_ANSWER,
        chat_template=BERT_CHAT,
        model_max_length=max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
