"""The command `dllm doctor`: versions, devices, the chosen implementation of each operation, and self-tests.

Every part of the report is a dict or a list of dicts of strings, so that it can be printed as a table or as JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

import dllm_kernels
from dllm.fast.compiled.decision import why_not_compile
from dllm_kernels import _extension, _impl

_CPU_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def main(as_json: bool = False) -> int:
    """Print the report; returns 0 if every self-test that can run on this machine passes, otherwise 1."""
    report = {}
    for name, part in PARTS.items():
        report[name] = part()
        if not as_json:  # part by part: building the extension and the self-test take a few seconds
            print(f"{name.upper()}\n{_table(report[name])}\n", flush=True)
    if as_json:
        print(json.dumps(report, indent=2))
    return int(any(row["result"].startswith("failed") for row in report["self-test"]))


def versions() -> dict[str, str]:
    """Versions of Python, dllm and its dependencies.

    Example:
        >>> sorted(versions())
        ['cuda', 'dllm', 'python', 'torch', 'transformers', 'triton']
    """
    backend = torch.version.cuda or (torch.version.hip and f"ROCm {torch.version.hip}")
    return {
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "dllm": dllm_kernels.__version__,
        "torch": torch.__version__,
        "cuda": backend or "not in this build of torch",
        "triton": _version("triton"),
        "transformers": _version("transformers"),
    }


def devices() -> dict[str, str]:
    """The CPU with its vector instructions, and every GPU visible to torch.

    Example:
        >>> "threads" in devices()["cpu"]
        True
    """
    model, flags = _cpu_info()
    capability = torch.backends.cpu.get_cpu_capability()
    found = {"cpu": f"{model}, {torch.get_num_threads()} threads, torch uses {capability}; {' '.join(flags)}"}
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
    return found


def extension() -> dict[str, str]:
    """The C++ kernels: the compiled library, the compiler and the sources. Compiles them if necessary.

    Example:
        >>> list(extension())
        ['library', 'compiler', 'sources']
    """
    status = _extension.status()
    return {
        "library": str(status.library) if status.library else f"not built: {status.reason}",
        "compiler": status.compiler or "none found",
        "sources": str(status.source),
    }


def compiler() -> dict[str, str]:
    """Whether a model's body can go through torch.compile (`compile_body`), for each device type.

    Example:
        >>> "cpu" in compiler()
        True
    """
    found = {device: why_not_compile(torch.device(device)) for device in _device_types()}
    return {device: f"unavailable: {why}" if why else "available" for device, why in found.items()}


def picked() -> list[dict[str, str]]:
    """The implementation that `impl="auto"` chooses for each operation and device type, and why.

    Example:
        >>> picked()[0]["device"]
        'cpu'
    """
    rows = []
    for device in _device_types():
        impl, reason = _impl.pick(torch.device(device))
        rows += [{"op": op, "device": device, "impl": impl, "because": reason} for op in SELF_TESTS]
    return rows


def self_test() -> list[dict[str, str]]:
    """Compare all implementations of all operations, on each supported device type, with the reference on the CPU."""
    rows = []
    for op, run in SELF_TESTS.items():
        expected = run("reference", "cpu")
        for impl, device, obstacle in _candidates():
            if op in ON_THE_HOST and (impl == "triton" or device != "cpu"):
                obstacle = "runs on the host alone"
            result = obstacle or _compare(run, impl, device, expected)
            rows.append({"op": op, "impl": impl, "device": device, "result": result})
    return rows


def _candidates() -> list[tuple[str, str, str | None]]:
    """All implementations: (name, device type, reason why it cannot run there, or None)."""
    cuda = torch.cuda.is_available()
    found = [("reference", device, None) for device in _device_types()]
    found.append(("cpu", "cpu", _impl.why_not_cpu()))
    no_triton = _impl.why_not_triton()
    if not no_triton and not cuda and not _impl.interpreting():
        no_triton = "needs a GPU (or TRITON_INTERPRET=1)"
    found.append(("triton", "cuda" if cuda else "cpu", no_triton))
    return found


def _compare(run: Callable[[str, str], Outputs], impl: str, device: str, expected: Outputs) -> str:
    """Returns "ok", or "failed" with the reason. Integers must be equal, floats close."""
    try:
        for got, want in zip(run(impl, device), expected, strict=True):
            torch.testing.assert_close(got.cpu(), want)
    except Exception as error:  # any failure belongs in the report
        return f"failed: {type(error).__name__}: {error}"
    return "ok"


def _align_tokens(impl: str, device: str) -> Outputs:
    draw = torch.Generator().manual_seed(0)
    x0, x1 = (torch.randint(4, (3, n), generator=draw) for n in (70, 130))
    lengths = torch.tensor([70, 1, 0]), torch.tensor([130, 9, 5])
    return tuple(dllm_kernels.align_tokens(x0, lengths[0], x1, lengths[1], impl=impl))


def _dropout(impl: str, device: str) -> Outputs:
    return (dllm_kernels.dropout(torch.ones(300), 0.25, torch.tensor(7), impl=impl),)


def _gumbel_argmax(impl: str, device: str) -> Outputs:
    logits = torch.randn(3, 257, generator=torch.Generator().manual_seed(0)).to(device)
    indices = torch.arange(3, device=device)
    return tuple(
        dllm_kernels.gumbel_argmax(logits, temperature=1.0, seeds=indices, positions=indices, step=1, impl=impl)
    )


def _attention(impl: str, device: str) -> Outputs:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 5, 32, generator=draw).to(device) for _ in range(3))
    return (dllm_kernels.attention(query, key, value, scale=0.2, impl=impl),)


def _packed_attention(impl: str, device: str) -> Outputs:
    draw, ends = torch.Generator().manual_seed(0), torch.tensor([0, 2, 5], dtype=torch.int32, device=device)
    query, key, value = (torch.randn(1, 2, 5, 32, generator=draw).to(device) for _ in range(3))
    return (dllm_kernels.packed_attention(query, key, value, ends, scale=0.2, window=2, impl=impl),)


def _int8_linear(impl: str, device: str) -> Outputs:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(5, 16, generator=draw), torch.randint(-127, 128, (33, 16), generator=draw)
    scale = torch.rand(33, generator=draw)
    return (dllm_kernels.int8_linear(hidden.to(device), weight.to(device, torch.int8), scale.to(device), impl=impl),)


def _linear_gumbel_argmax(impl: str, device: str) -> Outputs:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=draw).to(device) for n in (16, 257))
    indices = torch.arange(16, device=device)
    noise = dict(temperature=1.0, seeds=indices, positions=indices, step=1)
    return tuple(dllm_kernels.linear_gumbel_argmax(hidden, weight, **noise, impl=impl))


def _linear_expected_embedding(impl: str, device: str) -> Outputs:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=draw).to(device) for n in (16, 257))
    noise = dict(temperature=1.0, seeds=0, positions=torch.arange(16, device=device))
    found = dllm_kernels.linear_expected_embedding(hidden, weight, **noise, softcap=3.0, impl=impl)
    return (*found.sampled, found.embedding)


def _position_noise(impl: str, device: str) -> Outputs:
    indices = torch.arange(9, device=device)
    return (dllm_kernels.position_noise(indices, indices, 1, law="gumbel", impl=impl),)


def _masked_cross_entropy(impl: str, device: str) -> Outputs:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 257, generator=draw).to(device).requires_grad_()
    targets, row_weight = torch.tensor([7, -100, 250], device=device), torch.tensor([2.0, 0.0, 0.5], device=device)
    loss, nll = dllm_kernels.masked_cross_entropy(logits, targets, row_weight, impl=impl)
    loss.backward()
    return loss.detach(), nll.detach(), logits.grad


def _linear_cross_entropy(impl: str, device: str) -> Outputs:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=draw).to(device).requires_grad_() for n in (3, 257))
    targets, row_weight = torch.tensor([7, -100, 250], device=device), torch.tensor([2.0, 0.0, 0.5], device=device)
    loss, nll = dllm_kernels.linear_cross_entropy(hidden, weight, targets, row_weight, impl=impl)
    loss.backward()
    return loss.detach(), nll.detach(), hidden.grad, weight.grad


def _block_schedule(device: str) -> dllm_kernels.BlockSchedule:
    """Two rows of one block of four columns, in the first of two steps."""
    place, tables = torch.zeros(2, 2, dtype=torch.int64, device=device), torch.zeros(2, 1, dtype=torch.int64)
    begin, stop, steps = (tables.add(n).to(device) for n in (0, 4, 2))
    return dllm_kernels.BlockSchedule(*place, stop[:, 0] // 4, begin, stop, steps, stop[:, :, None] // 2)


def _list_candidates(impl: str, device: str) -> Outputs:
    canvas = torch.tensor([[9, 1, 9, 9], [9, 9, 2, 3]], device=device)
    rows = torch.zeros(3, 2, dtype=torch.int64, device=device)
    where = dict(start=rows[0], overflow=rows[0, :1].clone(), hidden_offset=rows[1], hidden_rows=8, room=8)
    schedule = _block_schedule(device)
    found = dllm_kernels.list_candidates(canvas, schedule, rows[2], mask_id=9, window=4, impl=impl, **where)
    return tuple(cells for cells in found if cells is not None)


def _place_proposals(impl: str, device: str) -> Outputs:
    slot = torch.tensor([[0, -1, 1, 2], [3, 4, -1, -1]], device=device)
    tokens, rows = torch.arange(5, device=device), torch.zeros(2, 2, dtype=torch.int64, device=device)
    cells = dllm_kernels.Candidates(tokens, tokens, tokens, tokens, tokens[:1], slot)
    window = dict(proposals=torch.zeros_like(slot), confidence=slot.float(), row_steps=rows[0], failed=rows[1])
    k = dllm_kernels.place_proposals(cells, tokens, tokens / 5, None, _block_schedule(device), impl=impl, **window)
    return k, window["proposals"], window["confidence"]


def _advance_rows(impl: str, device: str) -> Outputs:
    canvas = torch.tensor([[9, 1, 9, 9], [5, 6, 2, 3]], device=device)
    rows, schedule = torch.zeros(4, 2, dtype=torch.int64, device=device), _block_schedule(device)
    moved = dict(first=rows[0], row_steps=rows[1], unmasked_steps=rows[2], adapts=True, eos_id=3)
    dllm_kernels.advance_rows(canvas, schedule, canvas, canvas.float(), rows[3], mask_id=9, impl=impl, **moved)
    return schedule.block, schedule.step, rows


def _swiglu_experts(impl: str, device: str) -> Outputs:
    draw = torch.Generator().manual_seed(0)
    hidden, gate_up, down = (torch.randn(*n, generator=draw).to(device) for n in ((9, 20), (4, 12, 20), (4, 20, 6)))
    weights, index = (x.to(device) for x in torch.rand(9, 4, generator=draw).topk(2))
    small = [(30 * x).to(torch.int8) for x in (gate_up, down)]
    scales = dict(
        gate_up_scale=torch.full((4, 12), 1 / 30).to(device), down_scale=torch.full((4, 20), 1 / 30).to(device)
    )
    return (
        dllm_kernels.swiglu_experts(hidden, gate_up, down, index, weights, impl=impl),
        dllm_kernels.swiglu_experts(hidden, *small, index, weights, **scales, impl=impl),
    )


def _transfer_tokens(impl: str, device: str) -> Outputs:
    mask_id = 9
    canvas = torch.tensor([[mask_id, 1, mask_id, mask_id], [mask_id, mask_id, 2, 3]], device=device)
    proposals = torch.tensor([[4, 5, 6, 7], [8, 7, 6, 5]], device=device)
    confidence = torch.tensor([[0.5, 0.9, 0.5, 0.1], [0.2, 0.3, 0.4, 0.5]], device=device)
    count = dllm_kernels.transfer_tokens(canvas, proposals, confidence, mask_id=mask_id, k=2, impl=impl)
    return count, canvas


def _truncation_floor(impl: str, device: str) -> Outputs:
    logits = torch.randn(3, 257, generator=torch.Generator().manual_seed(0)).to(device)
    return (dllm_kernels.truncation_floor(logits, temperature=0.8, top_k=20, top_p=0.6, impl=impl),)


def _device_types() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _cpu_info() -> tuple[str, list[str]]:
    """The name of the CPU, and which of _CPU_FLAGS it has, as far as the system reports them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    available = (facts.get("flags") or facts.get("Features") or "").split()
    name = facts.get("model name") or platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores", [flag for flag in _CPU_FLAGS if flag in available]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _table(part: Mapping[str, str] | list[dict[str, str]]) -> str:
    if isinstance(part, Mapping):
        rows = list(part.items())
    else:
        rows = [tuple(part[0]), *(tuple(row.values()) for row in part)]
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    return "\n".join("  " + "  ".join(map(str.ljust, row, [*widths, 0])).rstrip() for row in rows)


Outputs = tuple[torch.Tensor, ...]
PARTS = {
    "versions": versions,
    "devices": devices,
    "extension": extension,
    "torch.compile": compiler,
    "picked": picked,
    "self-test": self_test,
}
# operations of data that no device has yet, and those for which torch serves GPUs
ON_THE_HOST = ("align_tokens", "attention", "dropout", "packed_attention", "swiglu_experts")
# for each operation of dllm_kernels a function (impl, device) -> results, which runs it on a tiny input
SELF_TESTS = {
    "advance_rows": _advance_rows,
    "align_tokens": _align_tokens,
    "attention": _attention,
    "dropout": _dropout,
    "gumbel_argmax": _gumbel_argmax,
    "int8_linear": _int8_linear,
    "linear_cross_entropy": _linear_cross_entropy,
    "linear_expected_embedding": _linear_expected_embedding,
    "linear_gumbel_argmax": _linear_gumbel_argmax,
    "list_candidates": _list_candidates,
    "masked_cross_entropy": _masked_cross_entropy,
    "packed_attention": _packed_attention,
    "place_proposals": _place_proposals,
    "position_noise": _position_noise,
    "swiglu_experts": _swiglu_experts,
    "transfer_tokens": _transfer_tokens,
    "truncation_floor": _truncation_floor,
}
