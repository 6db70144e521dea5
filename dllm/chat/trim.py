"""Decode finished canvases: the generated text, without the prompt and everything after the end of the answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from dllm.models.answers import answer_text

Rows = Sequence[Sequence[int]]


def sample_trim(tokenizer: Any, seq_ids_list: Rows, input_ids_list: Rows) -> list[str]:
    """The text that a sampler's `sample` generated after each prompt, up to the end of the answer.

    The answer ends at the first end-of-sequence or end-of-turn token after the prompt, or at the text of the end of
    turn: BERT-chat's `[/Answer]` is several tokens. Special tokens are left out, and so are masks that were never
    committed (:attr:`dllm.fast.Stats.masks_left` counts those).

    Args:
        tokenizer: its `eos_token_id`, `eot_token_id` and `eot_token` are used where it has them.
        seq_ids_list: B canvases of token ids.
        input_ids_list: their B prompts, as given to the sampler; a canvas begins with its prompt, or padding before it.

    Returns:
        B texts.

    Raises:
        ValueError: not one prompt per canvas, or a canvas that does not begin with its prompt.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> prompt, reply = tokenizer("6 * 7 ="), tokenizer(" 42")
        >>> canvas = [*prompt.input_ids, *reply.input_ids, tokenizer.eos_token_id, 5]
        >>> sample_trim(tokenizer, [canvas], [prompt.input_ids])
        [' 42']
    """
    pairs = _canvases_and_prompts(seq_ids_list, input_ids_list)
    return [answer_text(tokenizer, _generated(tokenizer, canvas, prompt)) for canvas, prompt in pairs]


def infill_trim(tokenizer: Any, seq_ids_list: Rows, input_ids_list: Rows) -> list[str]:
    """The text that a sampler's `infill` generated in place of the mask tokens of each input, joined into one text.

    Arguments and errors as in :func:`sample_trim`; special tokens are left out.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> six, times, seven = tokenizer("6 * 7").input_ids
        >>> infill_trim(tokenizer, [[six, times, seven]], [[six, tokenizer.mask_token_id, seven]])
        [' *']
    """
    texts = []
    for canvas, given in _canvases_and_prompts(seq_ids_list, input_ids_list):
        masked = [token == tokenizer.mask_token_id for token in given]
        begin = _prompt_start(tokenizer, canvas, given)
        if begin is None:
            raise ValueError("a canvas must agree with its input outside the masks, got another one")
        filled = [token for token, hole in zip(canvas[begin : begin + len(given)], masked, strict=True) if hole]
        texts.append(tokenizer.decode(filled, skip_special_tokens=True))
    return texts


def _canvases_and_prompts(canvases: Any, prompts: Any) -> Iterator[tuple[list[int], list[int]]]:
    canvases, prompts = _token_lists(canvases), _token_lists(prompts)
    if len(canvases) != len(prompts):
        raise ValueError(f"expected a prompt for each canvas, got {len(prompts)} and {len(canvases)}")
    return zip(canvases, prompts, strict=True)


def _token_lists(rows: Any) -> list[list[int]]:
    """Rows of token ids as lists, from lists, a tensor or a tokenizer's output."""
    if isinstance(rows, Mapping):
        rows = rows["input_ids"]
    return [row.tolist() if isinstance(row, Tensor) else list(row) for row in rows]


def _generated(tokenizer: Any, canvas: list[int], prompt: list[int]) -> list[int]:
    """The tokens after the prompt."""
    begin = _prompt_start(tokenizer, canvas, prompt)
    if begin is None:
        raise ValueError("a canvas must begin with its prompt, got another one")
    return canvas[begin + len(prompt) :]


def _prompt_start(tokenizer: Any, canvas: list[int], given: list[int]) -> int | None:
    """The column where the given tokens begin, after padding on the left; None if the canvas does not have them."""
    padding = {getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id")}
    mask = tokenizer.mask_token_id
    for begin in range(len(canvas) - len(given) + 1):
        row = canvas[begin : begin + len(given)]
        if all(old in (mask, new) for old, new in zip(given, row, strict=True)):
            return begin
        if canvas[begin] not in padding:
            return None
    return None
