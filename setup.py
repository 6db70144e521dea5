"""Everything but the packages stands in pyproject.toml: csrc/, a folder beside them, travels inside dllm_kernels."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["dllm", "dllm.*", "dllm_kernels", "dllm_kernels.*"]), "dllm_kernels.csrc"],
    package_dir={"dllm_kernels.csrc": "csrc"},
)
