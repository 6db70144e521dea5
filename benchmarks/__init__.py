"""Measurements: the sampling loop end to end, the kernels alone, and the tables and plots made from their rows.

Every number in the README comes from a row in ``benchmarks/results`` that one of these programs wrote.
"""
