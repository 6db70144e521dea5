"""Benchmarks: whole sampling loops and training steps, single kernels, accuracy, and the tables and plots of results.

Every number in README.md and docs/ comes from a JSON row in ``benchmarks/results`` that one of these programs wrote.
"""
