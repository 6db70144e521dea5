"""The static report: resources of kernels and predicted times of operations, computed without a GPU."""
