"""Uniform diffusion: canvases of random tokens, as DiffusionGemma denoises them."""
