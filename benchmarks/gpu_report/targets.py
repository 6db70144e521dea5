"""The performance targets, each with its formula, and whether the measured rows meet them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from benchmarks.target import Measured, Rows, Target, Verdict, verdict


def verdicts(rows: Rows) -> list[Verdict]:
    """The verdict on every target."""
    return [verdict(target, rows) for target in TARGETS]


def _kernels(rows: Rows, op: str, /, **settings: object) -> Iterator[tuple[dict, float]]:
    """Rows of an operation with these settings, each with the median seconds of dllm's program."""
    for row in rows:
        if row["kind"] != "kernel" or row["settings"]["op"] != op or "ceilings" not in row:
            continue
        matches = all(row["settings"][name] == value for name, value in settings.items())
        if matches and "seconds" in row["providers"]["ours"]:
            yield row, row["providers"]["ours"]["seconds"]["median"]


def _head_over_floor(rows: Rows) -> Iterator[Measured]:
    for row, seconds in _kernels(rows, "linear_gumbel_argmax"):
        yield Measured(seconds / row["floor_seconds"], row["title"], row)


def _head_over_others(rows: Rows) -> Iterator[Measured]:
    """Against the fastest other program, which may be dllm's own sampler after the library's matrix product."""
    for row, seconds in _kernels(rows, "linear_gumbel_argmax"):
        others = {name: r["seconds"]["median"] for name, r in row["providers"].items() if "seconds" in r}
        del others["ours"]
        if others:
            fastest = min(others, key=others.get)
            yield Measured(seconds / others[fastest], f"{row['title']}, {fastest}", row)


def _head_memory(rows: Rows) -> Iterator[Measured]:
    for row, _ in _kernels(rows, "linear_gumbel_argmax"):
        yield Measured(row["providers"]["ours"]["peak_bytes"] / 1e6, row["title"], row)


def _share_of_copy(dtypes: Sequence[str], temperature: float) -> Callable[[Rows], Iterator[Measured]]:
    def values(rows: Rows) -> Iterator[Measured]:
        for dtype in dtypes:
            for row, seconds in _kernels(rows, "gumbel_argmax", rows=1024, dtype=dtype, temperature=temperature):
                yield Measured(row["bytes"] / seconds / row["ceilings"]["copy"], row["title"], row)

    return values


def _share_of_product(rows: Rows) -> Iterator[Measured]:
    for row, seconds in _kernels(rows, "linear_cross_entropy", head="llada-8b", rows=4096):
        yield Measured(row["flops"] / seconds / row["ceilings"]["product"], row["title"], row)


def _large_at_batch_1(rows: Rows) -> Iterator[tuple[dict, str, dict[str, dict]]]:
    """Rows of ModernBERT-large, model card's sampler, batch 1, each with its temperature in words and timed results."""
    for row in rows:
        settings = row.get("settings", {})
        if row["kind"] != "sampler" or settings["sampler"] != "generate":
            continue
        if settings["model"] == "modernbert-large" and settings["batch"] == 1:
            results = {name: r for name, r in row.get("providers", {}).items() if "tokens_per_second" in r}
            yield row, f"temperature {settings['temperature']:g}", results


def _generate_over(provider: str) -> Callable[[Rows], Iterator[Measured]]:
    """Speed-up of the fastest dllm program over another provider."""

    def values(rows: Rows) -> Iterator[Measured]:
        for row, where, results in _large_at_batch_1(rows):
            ours = [r["tokens_per_second"] for name, r in results.items() if name.startswith("ours")]
            if ours and provider in results:
                yield Measured(max(ours) / results[provider]["tokens_per_second"], where, row)

    return values


def _milliseconds_per_step(rows: Rows) -> Iterator[Measured]:
    for row, where, results in _large_at_batch_1(rows):
        ours = [r["ms_per_step"]["median"] for n, r in results.items() if n.startswith("ours") and "ms_per_step" in r]
        if ours:
            yield Measured(min(ours), where, row)


def _cached(rows: Rows) -> Iterator[Measured]:
    for row in rows:
        settings = row.get("settings", {})
        if row["kind"] != "sampler" or (settings["model"], settings["sampler"]) != ("llada-8b", "fast-dllm-dual"):
            continue
        results = {name: r for name, r in row.get("providers", {}).items() if "tokens_per_second" in r}
        published = results.get("card")
        for name, ours in results.items():
            if published and name.startswith("ours") and ours["forwards"] == published["forwards"]:
                ratio = ours["tokens_per_second"] / published["tokens_per_second"]
                yield Measured(ratio, f"{name}, {ours['forwards']} forwards each", row)


SHARE = "bytes of the logits / seconds / bytes per second of a copy, 1024 rows of LLaDA's vocabulary"
TARGETS = (
    Target(
        "head and sampling",
        "seconds / max(bytes of head and hidden states / copy speed, 2 R H V / product speed)",
        1.25,
        _head_over_floor,
        at_most=True,
    ),
    Target(
        "head and sampling, against every other way",
        "seconds / those of the fastest other program of the row, at every number of rows",
        1.0,
        _head_over_others,
        at_most=True,
    ),
    Target(
        "head and sampling, memory",
        "peak of the allocator above hidden states and weight, MB",
        64.0,
        _head_memory,
        at_most=True,
    ),
    Target("statistics at temperature 0", SHARE, 0.85, _share_of_copy(("bfloat16", "float32"), 0.0)),
    Target("statistics and noise, float32", SHARE, 0.60, _share_of_copy(("float32",), 1.0)),
    Target("statistics and noise, bfloat16", SHARE, 0.35, _share_of_copy(("bfloat16",), 1.0)),
    Target("linear cross-entropy, LLaDA", "6 R H V / seconds / product speed, R = 4096", 0.80, _share_of_product),
    Target(
        "ModernBERT-large, batch 1, against the model card's loop",
        "tokens per second / those of the loop, eager",
        6.0,
        _generate_over("card"),
    ),
    Target(
        "ModernBERT-large, batch 1, against the compiled loop",
        'tokens per second / those of the loop under torch.compile(mode="reduce-overhead")',
        2.0,
        _generate_over("card-reduce-overhead"),
    ),
    Target(
        "ModernBERT-large, batch 1, a denoising step",
        "milliseconds of a run / its forward passes",
        1.0,
        _milliseconds_per_step,
        at_most=True,
    ),
    Target(
        "LLaDA-8B, cached decoding",
        "tokens per second / those of Fast-dLLM's own loop with the dual cache, at the same number of forwards",
        2.0,
        _cached,
    ),
)
