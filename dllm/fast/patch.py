"""`patch`: a model whose logits are computed only where they are used. One line makes a script faster."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dllm.fast.deferred import DeferredHead, defer_head
from dllm.fast.head.interception import instance_forward
from dllm.fast.head.split import output_head
from dllm.fast.head.use import why_not_linear
from dllm.fast.model import is_diffusion_gemma, unwrapped
from dllm.fast.uniform.generate import patch_generate, unpatch_generate


class Patch:
    """The result of :func:`patch`: a context manager that undoes the patch at its end."""

    def __init__(self, model: nn.Module, made: bool):
        self._model, self._made = model, made

    def __enter__(self) -> nn.Module:
        return self._model

    def __exit__(self, *_: object) -> None:
        if self._made:
            unpatch(self._model)


def patch(model: nn.Module) -> Patch:
    r"""Make `model(...).logits` a deferred tensor, which is computed only when, and only as far as, it is used.

    A script stays as it is. These operations on logits [B, L, V] run on hidden states and head, for the selected rows
    only, at most 2048 rows of logits at a time (256 on a CPU in float32, where gradients of the logits of no more rows
    are kept until the backward; those of others are computed again there):

    - `F.cross_entropy` and `nn.CrossEntropyLoss` with labels, any reduction, `ignore_index`, class weights or label
      smoothing; `F.nll_loss` of `log_softmax`; the model's own loss from `labels`;
    - before it, indexing by masks, rows and slices, `view`, `reshape`, `flatten`, `transpose`, `permute`, `cat` of one
      model's logits (the right shift), `clone`, `detach`, and casts that lose nothing;
    - `argmax(-1)`, and `softmax(-1)` or `log_softmax(-1)` followed by `gather` of one token for each row.

    Any other operation gets real logits, the same numbers as those of the unpatched model, with gradients; one line in
    the log of "dllm.fast" names it. In the backward, rows whose upstream gradient is zero cost nothing on the CPU.
    Second derivatives (`create_graph=True`) are refused.

    Of DiffusionGemma it is `model.generate` that becomes fast: same arguments and results, and canvases as likely as
    before, drawn with a seed from torch's generator (that of row i is s + i). Logits [B, L, V] are not stored: head,
    softcap, temperature, draw, argmax, entropy and self-conditioning are one pass. A call with logits processors, a
    streamer of logits or a static cache, which need them, runs transformers' own steps, with one line in the log. Bad
    input is a ValueError before anything runs: tokens outside the vocabulary, an image token without an image, a static
    cache beyond the sliding window, for which transformers computes wrong canvases.

    Masks, objective and row lengths are the script's own and are not checked: a causal model works too.

    A new head (`resize_token_embeddings`) is not patched: call this again. Copies, pickles and checkpoints of a patched
    model are those of the unpatched one.

    Args:
        model: a module with `get_output_embeddings()` whose output has `.logits`, or one wrapped by DDP, FSDP,
            torch.compile or peft. Its head must be an nn.Linear and its logits the head's output, which is
            checked by one forward on four tokens. A patched model stays as it is.

    Returns:
        A context manager that yields the model and undoes this call at its end; without `with`, the patch stays until
        :func:`unpatch`.

    Raises:
        ValueError: the model has no output embeddings, its head is no plain nn.Linear, or the model computes with
            its head's output.
        TypeError: the head of a DiffusionGemma is no plain nn.Linear.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> tiny = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=50)
        >>> model, ids = BertForMaskedLM(BertConfig(**tiny)), torch.full((2, 3), 5)
        >>> mask = torch.tensor([[True, False, True], [False, False, True]])
        >>> with patch(model):
        ...     logits = model(ids).logits
        ...     torch.nn.functional.cross_entropy(logits[mask], ids[mask]).backward()
        >>> logits.shape
        torch.Size([2, 3, 50])
    """
    if is_diffusion_gemma(model):
        return Patch(model, made=patch_generate(model))
    head = output_head(unwrapped(model))
    if isinstance(head, DeferredHead):
        return Patch(model, made=False)
    if type(head) is not nn.Linear:
        kind = type(head)
        raise ValueError(f"the head must be an nn.Linear, got {kind.__module__}.{kind.__qualname__}")
    if instance_forward(head) is not None:
        raise ValueError("the head must have the forward of its class, got one of the instance's own")
    if why := why_not_linear(model, head, {"input_ids": _example(head)}):
        raise ValueError(f"the model's logits must be its head's output: {type(unwrapped(model)).__name__}: {why}")
    defer_head(head, unwrapped(model))
    return Patch(model, made=True)


def unpatch(model: nn.Module) -> None:
    """Undo :func:`patch`. A model that is not patched stays as it is.

    Raises:
        RuntimeError: something has changed the head's class since.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> tiny = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=50)
        >>> model = BertForMaskedLM(BertConfig(**tiny))
        >>> _ = patch(model)
        >>> unpatch(model)
        >>> type(model.get_output_embeddings())
        <class 'torch.nn.modules.linear.Linear'>
    """
    if is_diffusion_gemma(model):
        return unpatch_generate(model)
    head = output_head(unwrapped(model))
    if type(head) is DeferredHead:
        head.__class__ = nn.Linear
    elif isinstance(head, DeferredHead):
        raise RuntimeError(f"the head must be as patch left it, got {type(head).__qualname__}: undo that first")


def _example(head: nn.Linear) -> Tensor:
    return torch.ones(1, 4, dtype=torch.int64, device=head.weight.device)
