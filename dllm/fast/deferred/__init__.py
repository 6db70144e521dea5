"""Logits that have not been computed: a tensor that knows its hidden states and its head.

recipe      hidden states, head and what they were computed under; logits of chosen rows of them
gradient    what a loss hands back instead of a gradient of logits: gradients of hidden states and head
tensor      the tensor, its place in autograd, and how it becomes real
views       indexing, reshaping, casting: still deferred
loss        cross-entropy of it
tokens      argmax, and probabilities of chosen tokens
head        a linear head that returns it
"""

from dllm.fast.deferred.head import DeferredHead, defer_head, no_deferral
from dllm.fast.deferred.tensor import DeferredLogits

__all__ = ["DeferredHead", "DeferredLogits", "defer_head", "no_deferral"]
