"""Metrics, throughput and the training curve of trainers."""

from dllm.core.trainers.utils.meters import OnEvaluateMetricsCallback
from dllm.core.trainers.utils.metrics import NLLMetric, PPLMetric

__all__ = ["NLLMetric", "OnEvaluateMetricsCallback", "PPLMetric"]
