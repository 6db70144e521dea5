"""The models of lm-evaluation-harness, each a class that names its row of the table of models."""

from __future__ import annotations

from dllm.core.eval.harness import DiffusionLM
from dllm.core.eval.models import MODELS


class LLaDALM(DiffusionLM):
    """LLaDA and LLaDA-MoE."""

    table = MODELS["llada"]


class BertLM(DiffusionLM):
    """BERT, RoBERTa and ModernBERT."""

    table = MODELS["bert"]


class DreamLM(DiffusionLM):
    """Dream."""

    table = MODELS["dream"]


class A2DMDLMLM(DiffusionLM):
    """Autoregressive models that were made bidirectional."""

    table = MODELS["a2d_mdlm"]


class A2DBD3LMLM(DiffusionLM):
    """Autoregressive models that were made to attend by blocks."""

    table = MODELS["a2d_bd3lm"]


class FastDLLMLLaDALM(DiffusionLM):
    """LLaDA with the cache and the threshold of Fast-dLLM."""

    table = MODELS["fastdllm_llada"]


class FastDLLMDreamLM(DiffusionLM):
    """Dream with the cache and the threshold of Fast-dLLM."""

    table = MODELS["fastdllm_dream"]


class LLaDA2LM(DiffusionLM):
    """LLaDA 2.0."""

    table = MODELS["llada2"]


class RND1LM(DiffusionLM):
    """RND1."""

    table = MODELS["rnd1"]


class DiffusionGemmaLM(DiffusionLM):
    """DiffusionGemma, for tasks that generate texts."""

    table = MODELS["diffusiongemma"]


class NemotronDiffusionLM(DiffusionLM):
    """Nemotron-Labs-Diffusion."""

    table = MODELS["nemotron_diffusion"]
