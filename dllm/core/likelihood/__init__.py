"""The log-likelihood of given tokens under a masked diffusion model: exact where that is cheap, else estimated."""

from dllm.core.likelihood.config import Estimate, LikelihoodConfig, Target
from dllm.core.likelihood.estimate import count_rows, log_likelihoods
from dllm.core.likelihood.rolling import rolling_log_likelihoods, windows_of

__all__ = [
    "Estimate",
    "LikelihoodConfig",
    "Target",
    "count_rows",
    "log_likelihoods",
    "rolling_log_likelihoods",
    "windows_of",
]
