"""From canvases to texts: sample_trim and infill_trim, on rows whose text is known."""

from __future__ import annotations

import pytest
import torch
from transformers import BatchEncoding

from dllm.chat.trim import infill_trim, sample_trim
from dllm.demo.shipped import load_shipped


@pytest.fixture(scope="module")
def tokenizer():
    return load_shipped()[1]


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


class Spelled:
    """A tokenizer whose end of turn is no token of its own, as BERT's is not: letters, with # for the mask."""

    eos_token_id, pad_token_id, mask_token_id, eot_token = ord("$"), ord("_"), ord("#"), "/A"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, tokens: list[int], skip_special_tokens: bool = False) -> str:
        text = "".join(map(chr, tokens))
        return text.translate(dict.fromkeys(map(ord, "$_#"))) if skip_special_tokens else text


class TestSample:
    def test_rows_of_different_length(self, tokenizer):
        end = tokenizer.eos_token_id
        prompts = [ids(tokenizer, "6 * 7 ="), ids(tokenizer, "8 - 4 is, as one knows,")]
        replies = [ids(tokenizer, " 42"), ids(tokenizer, " 4.")]
        canvases = [[*prompt, *reply, end, 5, 6] for prompt, reply in zip(prompts, replies, strict=True)]
        assert sample_trim(tokenizer, canvases, prompts) == [" 42", " 4."]

    @pytest.mark.parametrize("wrap", [torch.tensor, BatchEncoding])
    def test_what_samplers_and_tokenizers_return(self, tokenizer, wrap):
        prompt, reply = ids(tokenizer, "6 * 7 ="), ids(tokenizer, " 42")
        prompts = torch.tensor([prompt]) if wrap is torch.tensor else wrap({"input_ids": [prompt]})
        assert sample_trim(tokenizer, torch.tensor([[*prompt, *reply]]), prompts) == [" 42"]

    def test_padding_on_the_left(self):
        tokenizer = Spelled()
        canvas, prompt = tokenizer("___Q?yes$$")["input_ids"], tokenizer("Q?")["input_ids"]
        assert sample_trim(tokenizer, [canvas], [prompt]) == ["yes"]

    def test_a_prompt_that_holds_its_own_padding(self):
        tokenizer = Spelled()
        canvas, prompt = tokenizer("__Q?yes")["input_ids"], tokenizer("__Q?")["input_ids"]
        assert sample_trim(tokenizer, [canvas], [prompt]) == ["yes"]

    @pytest.mark.parametrize("canvas", ["Q?yes/A\n$$", "Q?yes$no", "Q?yes"])
    def test_an_end_of_turn_of_several_tokens(self, canvas):
        tokenizer = Spelled()
        assert sample_trim(tokenizer, [tokenizer(canvas)["input_ids"]], [tokenizer("Q?")["input_ids"]]) == ["yes"]

    def test_other_prompts(self, tokenizer):
        with pytest.raises(ValueError, match="must begin with its prompt"):
            sample_trim(tokenizer, [[5, 6, 7]], [[6, 7]])
        with pytest.raises(ValueError, match="a prompt for each canvas, got 0 and 1"):
            sample_trim(tokenizer, [[5, 6, 7]], [])


class TestInfill:
    def test_what_stands_in_the_holes(self):
        tokenizer = Spelled()
        canvases = [tokenizer(text)["input_ids"] for text in ("the cat$$", "a dog, o")]
        inputs = [tokenizer(text)["input_ids"] for text in ("the ###", "a ##g, #")]
        assert infill_trim(tokenizer, canvases, inputs) == ["cat", "doo"]

    def test_special_tokens_are_left_out(self):
        tokenizer = Spelled()
        assert infill_trim(tokenizer, [tokenizer("a b$")["input_ids"]], [tokenizer("a ##")["input_ids"]]) == ["b"]

    def test_another_text(self):
        tokenizer = Spelled()
        with pytest.raises(ValueError, match="agree with its input outside the masks"):
            infill_trim(tokenizer, [tokenizer("a cow")["input_ids"]], [tokenizer("the ##")["input_ids"]])
