"""A tiny model with the interface of Nemotron-Labs-Diffusion's published code, written anew. Checkpoints may carry it.

    encoder.layers[i].self_attn.diffusion_lm   True: no mask is used; False: the mask that the encoder makes
    forward(..., use_causal_mask=)             whether that mask is causal
    forward(..., use_cache=False)              keys and values beside those of `past_key_values`, which is not changed
    generate(prompt, ...)                      the published loop: causal prefill, blocks, causal pass after each block

Queries are scaled by position, as those of Ministral 3, from 16 positions on.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

HEADS, SCALED_FROM, BETA = 2, 16, 0.4


class NemotronLabsDiffusionConfig(PretrainedConfig):
    model_type = "nemotron_labs_diffusion"

    def __init__(self, vocab_size=97, hidden_size=32, num_hidden_layers=2, block_size=8, mask_token_id=3, **kwargs):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.block_size, self.mask_token_id = block_size, mask_token_id
        self.max_position_embeddings, self.rope_theta = 64, 10000.0
        super().__init__(**{"tie_word_embeddings": False} | kwargs)


class Attention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx, self.config, self.diffusion_lm = layer_idx, config, True
        size = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(size, size, bias=False) for _ in range(4))

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, cache_position=None, use_cache=False,
                position_embeddings=None, **kwargs):  # fmt: skip
        q, k, v = (
            project(hidden_states).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = position_embeddings
        q, k = (
            x * cos[:, None] + torch.cat([-x.chunk(2, -1)[1], x.chunk(2, -1)[0]], -1) * sin[:, None] for x in (q, k)
        )
        q = q * (1 + BETA * torch.log(1 + torch.floor(cache_position / SCALED_FROM))).unsqueeze(-1)
        if past_key_values is not None and use_cache:
            k, v = past_key_values.update(k, v, self.layer_idx, {"cache_position": cache_position})
        elif past_key_values is not None:
            kept = past_key_values.layers[self.layer_idx]
            k, v = torch.cat([kept.keys, k], 2), torch.cat([kept.values, v], 2)
        mask = None if self.diffusion_lm else attention_mask
        seen = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(seen.transpose(1, 2).flatten(2)), None


class Layer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        size = config.hidden_size
        self.self_attn = Attention(config, layer_idx)
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(size), nn.RMSNorm(size)
        self.mlp = nn.Sequential(nn.Linear(size, 48), nn.SiLU(), nn.Linear(48, size))

    def forward(self, hidden_states, **kwargs):
        hidden_states = hidden_states + self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class Encoder(PreTrainedModel):
    config_class = NemotronLabsDiffusionConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = nn.RMSNorm(config.hidden_size)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None,
                use_causal_mask=False, is_training=False, **kwargs):  # fmt: skip
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        cache_position = torch.arange(before, before + input_ids.shape[1], device=input_ids.device)
        if position_ids is None:
            position_ids = cache_position[None]
        mask = attention_mask
        if use_causal_mask and attention_mask is None:
            key = torch.arange(before + input_ids.shape[1], device=input_ids.device)
            mask = (key[None, :] <= cache_position[:, None])[None, None]
        half = self.config.hidden_size // HEADS // 2
        speed = self.config.rope_theta ** (-torch.arange(half, device=input_ids.device) / half)
        angle = (position_ids[..., None] * speed).repeat(1, 1, 2)
        hidden = self.embed_tokens(input_ids)
        for layer in self.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                past_key_values=past_key_values,
                cache_position=cache_position,
                use_cache=bool(use_cache),
                position_embeddings=(angle.cos().to(hidden.dtype), angle.sin().to(hidden.dtype)),
            )
        return SimpleNamespace(last_hidden_state=self.norm(hidden), past_key_values=past_key_values)


class NemotronLabsDiffusionModel(PreTrainedModel):
    config_class = NemotronLabsDiffusionConfig

    def __init__(self, config):
        super().__init__(config)
        self.mask_token_id = config.mask_token_id
        self.encoder = Encoder(config)
        self.diffusion_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        pass

    def get_input_embeddings(self):
        return self.encoder.embed_tokens

    def get_output_embeddings(self):
        return self.diffusion_head

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        out = self.encoder(
            past_key_values=past_key_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **kwargs,
        )
        logits = self.diffusion_head(out.last_hidden_state)
        return CausalLMOutputWithPast(logits=logits, past_key_values=out.past_key_values)

    @torch.no_grad()
    def generate(self, prompt, max_new_tokens, block_length, threshold):
        """One row [1, P], the likeliest tokens; with how often the model ran."""
        tokens, runs = prompt, 1
        out = self._flagged(False)(prompt, use_cache=True, use_causal_mask=True)
        for _ in range(max_new_tokens // block_length):
            block = prompt.new_full((1, block_length), self.mask_token_id)
            block[0, 0] = out.logits[0, -1].argmax()
            while bool((masked := block == self.mask_token_id).any()):
                logits = self._flagged(True)(block, past_key_values=out.past_key_values, use_cache=False).logits
                sure, token = logits.softmax(-1).max(-1)
                sure = torch.where(masked, sure, -1.0)
                block = torch.where((sure >= threshold) | (sure == sure.max()) & masked, token, block)
                runs += 1
            tokens = torch.cat([tokens, block], 1)
            out = self._flagged(False)(block, past_key_values=out.past_key_values, use_cache=True, use_causal_mask=True)
            runs += 1
        self._flagged(True)
        return tokens, runs

    def _flagged(self, value):
        for layer in self.encoder.layers:
            layer.self_attn.diffusion_lm = value
        return self


def tiny_nemotron(seed: int = 0, **options: object) -> NemotronLabsDiffusionModel:
    """A fresh model in eval mode whose tokens and confidences differ from place to place; masks are never likely."""
    model = NemotronLabsDiffusionModel(NemotronLabsDiffusionConfig(**options)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 2.5 / parameter.shape[1] ** 0.5 if parameter.dim() == 2 else 1 + 0.1 * noise)
        model.diffusion_head.weight[model.mask_token_id] = 0
    return model
