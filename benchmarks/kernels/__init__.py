"""Benchmarks of single operations: cases, inputs, programs, and files for pytest-benchmark."""
