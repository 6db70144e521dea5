"""The official forwards in plain PyTorch, from SPEC-level formulae: judges of checkpoints that no toy covers.

Every function takes the official configuration, the official tensors, ids [B, L] and what is visible, bool
[B or 1, 1, L or 1, L], and returns logits [B, L, V] in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def llada(config: dict, tensors: dict[str, Tensor], ids: Tensor, visible: Tensor) -> Tensor:
    """LLaDA, with fewer key heads, biases of q, k and v, or the embedding as the head."""
    heads = config["n_heads"]
    kv_heads = config["n_kv_heads"] or (1 if config["multi_query_attention"] else heads)
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    top = "model.transformer."
    states = tensors[f"{top}wte.weight"][ids]
    for layer in range(config["n_layers"]):
        block = {n.removeprefix(f"{top}blocks.{layer}."): t for n, t in tensors.items() if f"blocks.{layer}." in n}
        normed = rms(states, block["attn_norm.weight"], eps)
        q, k, v = (
            split(functional.linear(normed, block[f"{part}_proj.weight"], block.get(f"{part}_proj.bias")), count)
            for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        states = states + attend(rotated(q, theta), rotated(k, theta), v, visible) @ block["attn_out.weight"].T
        normed = rms(states, block["ff_norm.weight"], eps)
        gated = functional.silu(normed @ block["ff_proj.weight"].T) * (normed @ block["up_proj.weight"].T)
        states = states + gated @ block["ff_out.weight"].T
    head = tensors[f"{top}wte.weight" if config["weight_tying"] else f"{top}ff_out.weight"]
    return rms(states, tensors[f"{top}ln_f.weight"], eps) @ head.T


def qwen_like(config: dict, tensors: dict[str, Tensor], ids: Tensor, visible: Tensor) -> Tensor:
    """Dream, A2D, LLaDA-MoE and RND1: the names of Qwen; with biases, head norms and experts if there are some."""
    heads, kv_heads, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]
    states = tensors["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        block = _layer(tensors, layer)
        normed = rms(states, block["input_layernorm.weight"], eps)
        q, k, v = (
            split(
                functional.linear(
                    normed, block[f"self_attn.{part}_proj.weight"], block.get(f"self_attn.{part}_proj.bias")
                ),
                count,
            )
            for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        if "self_attn.q_norm.weight" in block:
            q, k = rms(q, block["self_attn.q_norm.weight"], eps), rms(k, block["self_attn.k_norm.weight"], eps)
        q, k = rotated(q, config["rope_theta"]), rotated(k, config["rope_theta"])
        states = states + attend(q, k, v, visible) @ block["self_attn.o_proj.weight"].T
        normed = rms(states, block["post_attention_layernorm.weight"], eps)
        states = states + (
            _softmax_experts(config, block, normed) if "mlp.gate.weight" in block else mlp(block, normed)
        )
    head = tensors["model.embed_tokens.weight" if config.get("tie_word_embeddings") else "lm_head.weight"]
    return rms(states, tensors["model.norm.weight"], eps) @ head.T


def llada2(config: dict, tensors: dict[str, Tensor], ids: Tensor, visible: Tensor) -> Tensor:
    """LLaDA2: q, k and v in one tensor, head norms, half of each head rotated, experts by groups."""
    heads, kv_heads, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    eps, turned = config["rms_norm_eps"], int(dim * config["partial_rotary_factor"])
    states = tensors["model.word_embeddings.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        block = _layer(tensors, layer)
        normed = rms(states, block["input_layernorm.weight"], eps)
        qkv = split(normed @ block["attention.query_key_value.weight"].T, heads + 2 * kv_heads)
        q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
        q = rms(q, block["attention.query_layernorm.weight"], eps)
        k = rms(k, block["attention.key_layernorm.weight"], eps)
        q, k = (
            torch.cat([rotated(part[..., :turned], config["rope_theta"]), part[..., turned:]], dim=-1)
            for part in (q, k)
        )
        states = states + attend(q, k, v, visible) @ block["attention.dense.weight"].T
        normed = rms(states, block["post_attention_layernorm.weight"], eps)
        states = states + (
            _grouped_experts(config, block, normed) if "mlp.gate.weight" in block else mlp(block, normed)
        )
    return rms(states, tensors["model.norm.weight"], eps) @ tensors["lm_head.weight"].T


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def split(x: Tensor, heads: int) -> Tensor:
    """[B, L, heads * D] as [B, heads, L, D]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def rotated(x: Tensor, theta: float) -> Tensor:
    """Rotary embedding of [B, heads, L, D]: halves are rotated against each other."""
    length, dim = x.shape[-2:]
    frequency = theta ** (-torch.arange(0, dim, 2) / dim)
    angle = torch.arange(length)[:, None] * frequency
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """softmax(q k' / sqrt(D)) v over the visible keys, as [B, L, heads * D]."""
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)


def mlp(block: dict[str, Tensor], x: Tensor, name: str = "mlp") -> Tensor:
    """down(silu(gate x) * up x)."""
    gate, up, down = (block[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
    return (functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def _softmax_experts(config: dict, block: dict[str, Tensor], x: Tensor) -> Tensor:
    """The best experts by softmax; their weights sum to one only with norm_topk_prob."""
    probability = (x @ block["mlp.gate.weight"].T).softmax(-1)
    best, chosen = probability.topk(config["num_experts_per_tok"], dim=-1)
    if config["norm_topk_prob"]:
        best = best / best.sum(-1, keepdim=True)
    return _weighted(config, block, x, torch.zeros_like(probability).scatter(-1, chosen, best))


def _grouped_experts(config: dict, block: dict[str, Tensor], x: Tensor) -> Tensor:
    """The best experts of the best groups by sigmoid and bias, weighted by sigmoid; and the shared expert."""
    score = (x @ block["mlp.gate.weight"].T).sigmoid()
    choice = (score + block["mlp.gate.expert_bias"]).unflatten(-1, (config["n_group"], -1))
    group = choice.topk(2, dim=-1).values.sum(-1)
    worst_chosen = group.topk(config["topk_group"], dim=-1).values[..., -1:]
    choice = choice.masked_fill((group < worst_chosen)[..., None], -torch.inf).flatten(-2)
    chosen = choice.topk(config["num_experts_per_tok"], dim=-1).indices
    weight = score.gather(-1, chosen)
    weight = config["routed_scaling_factor"] * weight / weight.sum(-1, keepdim=True)
    routed = _weighted(config, block, x, torch.zeros_like(score).scatter(-1, chosen, weight))
    return routed + mlp(block, x, "mlp.shared_experts")


def _weighted(config: dict, block: dict[str, Tensor], x: Tensor, weights: Tensor) -> Tensor:
    return sum(
        weights[..., expert, None] * mlp(block, x, f"mlp.experts.{expert}") for expert in range(config["num_experts"])
    )


def _layer(tensors: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    prefix = f"model.layers.{layer}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
