"""Throughput of a run: tokens per second, model FLOP/s utilisation (MFU), peak memory."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dllm.fast.head.split import output_head
from dllm.fast.model import unwrapped

# Side of the square matrices whose product measures the peak FLOP/s of a device.
_SIDE = {"cpu": 1024, "cuda": 4096}


class Flops:
    """Useful floating-point operations of a training step: without padding and recomputation.

    A token costs, for each weight, 2 in the forward, 2 for the gradient of the input, and 2 for the gradient of the
    weight if that is trained. Full attention over n tokens costs 12 n^2 H in each layer. The head counts for masked
    tokens only. All experts of a mixture count, though a token visits few of them.

    Args:
        model: has `get_output_embeddings`. Attention counts as 0 unless its config has `num_hidden_layers` and
            `hidden_size`.

    Raises:
        ValueError: the model has no output embeddings.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> tiny = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=50)
        >>> model = BertForMaskedLM(BertConfig(**tiny))
        >>> flops = Flops(model)
        >>> flops.head  # 6 H V
        2400
    """

    def __init__(self, model: nn.Module):
        config = getattr(model, "config", None)
        head = output_head(unwrapped(model))
        tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
        matrices = [p for p in model.parameters() if p.dim() >= 2]
        of_head = [p for p in head.parameters() if p.dim() >= 2]
        known = tables | {id(p) for p in of_head}
        self.body = sum(_per_token(p) for p in matrices if id(p) not in known)
        self.head = sum(_per_token(p) for p in of_head)
        self.attention = 12 * getattr(config, "num_hidden_layers", 0) * getattr(config, "hidden_size", 0)

    def __call__(self, tokens: float, squares: float, masked: float) -> float:
        """FLOP of a step.

        Args:
            tokens: of all sequences together.
            squares: the sum of the sequences' squared lengths.
            masked: masked tokens.
        """
        return self.body * tokens + self.attention * squares + self.head * masked


class Throughput:
    """Tokens per second over an interval of training, all ranks together.

    Args:
        device: of the counts, which are read only by :meth:`rates`.
        predicted: what the tokens that meet the head are called.

    Example:
        >>> throughput = Throughput(torch.device("cpu"))
        >>> throughput.start()
        >>> throughput.update(torch.tensor([3, 5]), masked=4)
        >>> sorted(throughput.rates())
        ['masked_tokens_per_second', 'tokens_per_second']
    """

    def __init__(self, device: torch.device, predicted: str = "masked_tokens"):
        self.device, self.predicted = device, predicted
        self._reset()

    def start(self) -> None:
        """Start the clock, unless it runs."""
        if self._since is None:
            self._since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside this context (evaluation, saving)."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if self._since is not None:
                self._since += time.perf_counter() - began

    def update(self, lengths: Tensor, masked: int) -> None:
        """Add a batch.

        Args:
            lengths: int64 [B], tokens of each row.
            masked: the number of tokens that meet the head.
        """
        self._counts += torch.stack([lengths.sum(), lengths.square().sum(), torch.full_like(lengths.sum(), masked)])

    def rates(self, flops: Flops | None = None, peak: float = 0.0) -> dict[str, float]:
        """Tokens and predicted tokens per second since the last call, all ranks together; then reset.

        With `flops` and `peak` (FLOP/s of one device) also `mfu`, useful FLOP/s divided by the peak of all devices.
        """
        counts, ranks = self._counts, 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            ranks = dist.get_world_size()
        tokens, squares, masked = counts.tolist()  # waits for the device
        seconds = time.perf_counter() - (self._since or time.perf_counter())
        self._reset()
        if seconds <= 0:
            return {}
        rates = {"tokens_per_second": tokens / seconds, f"{self.predicted}_per_second": masked / seconds}
        if flops is not None:
            rates["mfu"] = flops(tokens, squares, masked) / seconds / (ranks * peak)
        return rates

    def _reset(self) -> None:
        self._since: float | None = None
        self._counts = torch.zeros(3, dtype=torch.int64, device=self.device)


@functools.cache
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of five matrix products, 1024 x 1024 on a CPU and 4096 x 4096 on a GPU.

    It is measured in this process and dtype, so that an MFU means the same on every machine.

    Example:
        >>> matmul_rate(torch.device("cpu"), torch.float32) > 0
        True
    """
    side = _SIDE.get(device.type, _SIDE["cuda"])
    a, b = (torch.randn(side, side, generator=torch.Generator().manual_seed(s)).to(device, dtype) for s in (0, 1))
    seconds = []
    for _ in range(6):  # the first is a warm-up
        began = time.perf_counter()
        a @ b
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds[1:])


def peak_memory(device: torch.device) -> float | None:
    """Peak memory in GiB: allocated by torch on a GPU, else resident memory of this process; None if not known.

    Example:
        >>> peak_memory(torch.device("cpu")) > 0
        True
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _per_token(weight: nn.Parameter) -> int:
    elements = getattr(weight, "ds_numel", weight.numel())  # of the full weight where ZeRO-3 has sharded it
    return (6 if weight.requires_grad else 4) * elements


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
