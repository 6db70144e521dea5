"""What the chat's tests share: the bundled model behind a sampler, and a tokenizer that one can follow by eye."""

from __future__ import annotations

import pytest

from dllm.core.samplers import MDLMSampler, MDLMSamplerConfig
from dllm.demo.shipped import load_shipped


class Words:
    """A tokenizer of five tokens; its text joins what begins with ## to the word before, as WordPiece does."""

    mask_token_id, eos_token_id, pad_token_id = 0, 4, 4
    names = ("[MASK]", "hello", "world", "##ly", "[END]")

    def decode(
        self, ids: list[int], skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        assert not clean_up_tokenization_spaces  # it would change text that is already on the screen
        assert not skip_special_tokens  # they are shown
        return " ".join(self.names[i] for i in ids).replace(" ##", "")


@pytest.fixture
def words() -> Words:
    return Words()


@pytest.fixture(scope="session")
def sampler() -> MDLMSampler:
    return MDLMSampler(*load_shipped())


@pytest.fixture
def short() -> MDLMSamplerConfig:
    """Room for a short sum, in few steps."""
    return MDLMSamplerConfig(max_new_tokens=8, block_size=8, steps=8, stop_at_eos=True)
