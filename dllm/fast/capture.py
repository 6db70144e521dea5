"""Capture of CUDA graphs, for sampling and training alike: warming up, recording, memory pools, keys."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from dllm.fast.attention import attention_of
from dllm.fast.head.use import module_settings, structure_of
from dllm.fast.model import configuration

WARM_UPS = 2

# One thread captures at a time. Captures share a stream, on which another thread's warm-up would be captured too, and
# the sync-debug mode, which is the process's.
_capturing = threading.RLock()

# torch's memory allocator keeps calling what an aborted capture has registered, so such graphs are never freed.
_aborted: list[torch.cuda.CUDAGraph] = []

_log = logging.getLogger("dllm.fast")


class CaptureError(RuntimeError):
    """A step could not be captured as a CUDA graph.

    broken: CUDA aborted the capture; torch's memory pool does not recover from that.
    """

    broken = False

    @classmethod
    def because(cls, error: BaseException, broken: bool = False) -> CaptureError:
        """Made of another error's first line."""
        made = cls(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        made.broken = broken
        return made


@dataclass(eq=False)
class Pool:
    """A memory pool of CUDA graphs that run one after the other, on one stream of a device: each needs the memory only
    while it runs. torch frees it with the last of them.

    handle: torch's.
    bytes: the memory that it holds.
    broken: a capture into it was aborted: for torch that capture never ends, and no other may begin.
    """

    handle: object
    bytes: int = 0
    broken: bool = False


def forward_settings(model: nn.Module) -> Hashable:
    """What a forward may read besides tensors: the modules' own numbers, names and switches (such as the active
    adapters and their scales), hooks, and the configuration."""
    modules = tuple((structure_of(module), module_settings(module)) for module in model.modules())
    return hash(modules), configuration(model)


def check_one_device(model: nn.Module, device: torch.device) -> None:
    """Check that all weights lie on one device: what is offloaded cannot be captured.

    Raises:
        CaptureError: weights lie elsewhere.
    """
    elsewhere = sorted({str(p.device) for p in model.parameters()} - {str(device)})
    if elsewhere:
        raise CaptureError(f"not all weights lie on {device}, some lie on {' and '.join(elsewhere)}")


def capture_conditions(model: nn.Module, device: torch.device) -> Hashable:
    """What a captured forward depends on besides its inputs: weights' addresses, modes, dtypes, the device."""
    # the same address may belong to other weights, of another dtype
    weights = tuple((t.data_ptr(), t.dtype, t.shape) for t in (*model.parameters(), *model.buffers()))
    modes = (
        attention_of(model),
        torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type),
        torch.get_float32_matmul_precision(),
        torch.is_inference_mode_enabled(),  # its tensors may not be written outside of it
        tuple(module.training for module in model.modules()),
        str(device),
    )
    return id(model), hash(weights), modes


def warm_up(run: Callable[[], None], device: torch.device) -> None:
    """Call `run` on the stream on which it will be captured, so that one-time set-up happens before.

    Raises:
        CaptureError: it raised an error, or the device has no graphs.
    """
    if device.type != "cuda":
        raise CaptureError(f"no CUDA graphs on {device.type}")
    with _capturing, torch.cuda.device(device):
        current = torch.cuda.current_stream()
        side = _side_stream(device, current.cuda_stream)
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side), _same_masks():
                run()
        except Exception as error:
            raise CaptureError.because(error) from error
        finally:
            current.wait_stream(side)


def record(run: Callable[[], None], device: torch.device, pool: object) -> Callable[[], None]:
    """Capture the kernels that `run` launches, without running them, and return a function that replays them.

    Calls that wait for the device raise before CUDA sees them. CUDA would abort the capture, and torch does not recover
    from that: it leaves the capture's stream current and its random generator in a captured state. If a capture is
    aborted all the same, both are restored here. An error that is raised within a capture that ends in order leaves
    nothing behind.

    Raises:
        CaptureError: with the reason.
    """
    with _capturing, torch.cuda.device(device):
        graph, side, failure = torch.cuda.CUDAGraph(), _side_stream(device, stream_of(device)), None
        random = torch.cuda.get_rng_state(device)
        try:
            with torch.cuda.stream(side):  # left again even where the context below is not
                # thread_local: a data loader's thread that pins memory meanwhile does no harm
                with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                    try:
                        with _sync_raises(), _same_masks():
                            run()
                    except BaseException as error:  # tells more than the error at the end of an aborted capture
                        failure = error
                        raise
        except BaseException as error:
            broken = error is not failure
            if broken:
                _aborted.append(graph)
                _renew_generator(device, random)
                _log.warning("CUDA aborted a capture: torch frees no cached memory until the process is restarted")
            reason = failure or error
            if not isinstance(reason, Exception):  # Ctrl-C
                raise reason from None
            raise CaptureError.because(reason, broken) from reason
    return graph.replay


@contextmanager
def own_autocast_cache() -> Iterator[None]:
    """Run a capture with an empty autocast cache, and leave an empty one.

    Autocast keeps its casts of weights until its outermost context ends. Casts from outside may be freed, or older than
    the weights, at the graph's next replay; casts of the graph lie in memory that its next replay overwrites.
    """
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


@contextmanager
def _same_masks() -> Iterator[None]:
    """Let transformers build the same attention masks in warm-ups and in captures.

    Its `is_tracing` is true while a stream captures. A forward whose mask is None then builds one under which all is
    visible (transformers 5.17; 5.23 does not): attention kernels that take no mask are lost, and eager attention waits
    for the device. A mask of ones is dropped in a warm-up, which waits for the device, and kept in a capture. In this
    context None stays None, and any other mask is kept. transformers 4.57 has no such function.
    """
    module = sys.modules.get("transformers.masking_utils")
    before = getattr(module, "is_tracing", None)
    if before is None:
        yield
        return
    module.is_tracing = _is_given
    try:
        yield
    finally:
        module.is_tracing = before


def _is_given(tensor: torch.Tensor | None = None) -> bool:
    return tensor is not None


@contextmanager
def _sync_raises() -> Iterator[None]:
    """Let calls that wait for the device raise. torch has this mode per process: it holds for other threads too."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _renew_generator(device: torch.device, state: torch.Tensor) -> None:
    """Give torch's generator of a device a state that no capture has touched. Earlier graphs that draw random numbers
    are cut off from it, and must not be replayed again."""
    fresh = torch.Generator(device)
    fresh.set_state(state)
    torch.cuda.default_generators[torch.cuda.current_device()].graphsafe_set_state(fresh)


@functools.cache
def _side_stream(device: torch.device, replaying: int) -> torch.cuda.Stream:
    """The stream for captures that are replayed on the stream with the handle `replaying`.

    A captured product uses the workspace that its library keeps for the stream of the capture. So graphs that are
    replayed one after the other share a stream, and graphs that may run at the same time do not.
    """
    return torch.cuda.Stream(device)


def wanted(cuda_graph: bool | None, device: torch.device) -> tuple[bool, str]:
    """Whether to capture what comes up often enough, and if not, why.

    Raises:
        TypeError: `cuda_graph` is neither None nor a bool.
        ValueError: True, and the model is not on a CUDA device.
    """
    check_cuda_graph(cuda_graph)
    if device.type != "cuda":
        if cuda_graph:
            raise ValueError(f"cuda_graph=True needs a model on a CUDA device, got {device}")
        return False, f"no CUDA graphs on {device.type}"
    return cuda_graph is not False, "switched off"


def check_cuda_graph(cuda_graph: object) -> None:
    """Check that `cuda_graph` is None, True or False.

    Raises:
        TypeError: it is not.
    """
    if cuda_graph is not None and not isinstance(cuda_graph, bool):
        raise TypeError(f"cuda_graph must be None, True or False, got {type(cuda_graph).__name__}")


def stream_of(device: torch.device) -> int:
    """The handle of the current stream; 0 without CUDA."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def bytes_of(handle: object, device: torch.device) -> int:
    """Bytes of device memory that a pool holds; 0 where the allocator is not torch's own, which does not tell."""
    if device.type != "cuda" or torch.cuda.get_allocator_backend() != "native":
        return 0
    # the history of allocations is not read, and takes long in a large process; before torch 2.11 it always comes along
    options = inspect.signature(torch.cuda.memory_snapshot).parameters
    segments = torch.cuda.memory_snapshot(**({"include_traces": False} if "include_traces" in options else {}))
    return sum(segment["total_size"] for segment in segments if segment["segment_pool_id"] == handle)


def memory_of(device: torch.device) -> int:
    """Memory of a device, in bytes; 0 without CUDA."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
