"""Deferred logits: a tensor that keeps hidden states and head, and computes logits only where they are used.

head_inputs hidden states, head and autocast; logits of chosen rows
logits_view which rows of the logits a tensor shows, in which shape and dtype
gradient    gradients of hidden states and head in the place of a gradient of logits
tensor      the tensor, its place in autograd, and how it is materialized
views       indexing, reshaping, casting: still deferred
loss        cross-entropy
tokens      argmax, and probabilities of chosen tokens
head        a linear head that returns it
"""

from dllm.fast.deferred.head import DeferredHead, defer_head, no_deferral
from dllm.fast.deferred.tensor import DeferredLogits

__all__ = ["DeferredHead", "DeferredLogits", "defer_head", "no_deferral"]
