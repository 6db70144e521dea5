"""Plots of measured rows: PNG files of one measurement, and the SVG files in docs/ of the published results.

``python -m benchmarks.plot`` draws the files in docs/.
"""

from benchmarks.plot.bodies import body_growth
from benchmarks.plot.evaluation import evaluation_row
from benchmarks.plot.kernels import kernel_rows
from benchmarks.plot.quality import quality_row
from benchmarks.plot.sampling import sampler_rows
from benchmarks.plot.training import training_curve

__all__ = ["body_growth", "evaluation_row", "kernel_rows", "quality_row", "sampler_rows", "training_curve"]
