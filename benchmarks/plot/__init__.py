"""Plots of measured rows: of one measurement as a PNG file, of the published results as the SVG files in docs/.

``python -m benchmarks.plot`` draws the files in docs/ anew.
"""

from benchmarks.plot.kernels import kernel_rows
from benchmarks.plot.quality import quality_row
from benchmarks.plot.sampling import sampler_rows
from benchmarks.plot.training import training_curve

__all__ = ["kernel_rows", "quality_row", "sampler_rows", "training_curve"]
