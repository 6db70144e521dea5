"""The GPU report: tests and benchmarks of everything on one GPU, by ``python -m benchmarks.gpu_report``."""
