"""Measurements: the sampling loop and the training step end to end, the kernels alone, and the tables and plots made
from their rows.

Every number in the README comes from a row in ``benchmarks/results`` that one of these programs wrote.
"""
