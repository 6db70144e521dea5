"""Evaluation of masked-diffusion models."""
