"""Cases for pytest-benchmark, one file for each operation."""
