"""One command that proves and measures everything on the GPU at hand: ``python -m benchmarks.gpu_report``."""
