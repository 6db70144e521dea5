"""Measuring one case: first runs, interleaved counted runs, one run taken apart, and the comparison of the tokens."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks import models, providers, report, timing
from benchmarks.providers import Case, Provider, Split

Result = dict[str, object]


def measure(
    loaded: models.Loaded,
    case: Case,
    names: list[str],
    repeats: int,
    *,
    prompt: Tensor | None = None,
    check_noise: bool = False,
    deadline: float | None = None,
) -> dict[str, Result]:
    """Measure the providers called `names` on one case, interleaved.

    Args:
        prompt: int64 [B, P]; None draws random tokens.
        check_noise: where random numbers are drawn, compare tokens with the authors' loop on our random stream.
        deadline: a value of ``time.monotonic()`` after which no further round starts.

    Returns:
        For each provider its numbers, or {"error": why}.
    """
    prompt = random_prompt(loaded, case) if prompt is None else prompt
    results: dict[str, Result] = {}
    ready: dict[str, Provider] = {}
    canvases: dict[str, Tensor] = {}
    judging: dict[str, Result] = {}
    apart = max(1, repeats // 2)
    with report.progress(total=len(names) * (1 + repeats + apart) + check_noise) as begin:
        for name in names:
            begin(f"{case.title}: first run of {name}")
            with failures_in(results, name):
                ready[name], results[name] = first_run(name, loaded, case, prompt)

        def once(name: str) -> float | None:
            begin(f"{case.title}: {name}")
            with failures_in(results, name):
                start = time.perf_counter()
                canvases[name] = ready[name].complete(case.steps)
                timing.synchronize(prompt.device)
                return time.perf_counter() - start

        calls = {name: functools.partial(once, name) for name in ready}
        for name, seconds in timing.interleave(calls, repeats, deadline).items():
            results[name] |= rates(seconds, canvases[name], loaded, case)
        splits: dict[str, list[Split]] = {name: [] for name in ready}
        for _ in timing.rounds(apart, deadline):
            for name, provider in ready.items():
                begin(f"{case.title}: {name} taken apart")
                with failures_in(results, name), timing.PeakMemory(prompt.device) as memory:
                    splits[name].append(provider.split())
                results[name] = {"peak_bytes": memory.bytes, "peak_how": memory.how} | results[name]
        for name, runs in splits.items():
            results[name] |= taken_apart(runs, results[name])
        if check_noise and not case.deterministic:
            begin(f"{case.title}: the authors' loop on our noise")
            with failures_in(judging, "judge"):
                canvases["judge"] = providers.philox_check(loaded, case, prompt)
    compare(results, canvases, case, why_not=judging.get("judge", {}).get("error"))
    return results


@contextlib.contextmanager
def failures_in(results: dict[str, Result], name: str) -> Iterator[None]:
    """Whatever a provider raises becomes the reason in its row; the others go on."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or "no message"
        results[name] = results.get(name, {}) | {"error": f"{type(error).__name__}: {reason}"}


def first_run(name: str, loaded: models.Loaded, case: Case, prompt: Tensor) -> tuple[Provider, Result]:
    """Build a provider and let it compile, capture and fill its caches: a whole run on a GPU, else a step a block."""
    with timing.PeakMemory(prompt.device) as memory:
        start = time.perf_counter()
        provider = providers.build(name, loaded, case, prompt)
        provider.complete(case.steps if prompt.device.type == "cuda" else case.blocks)  # rules count no steps
        timing.synchronize(prompt.device)
        seconds = time.perf_counter() - start
    captured = {"peak_bytes": memory.bytes, "peak_how": memory.how} if provider.captures else {}
    return provider, {"first_run_seconds": seconds} | captured


def rates(seconds: list[float], canvas: Tensor, loaded: models.Loaded, case: Case) -> Result:
    """Times and speeds of a provider's counted runs."""
    spread = timing.summary(seconds)
    useful = useful_tokens(canvas[:, case.prompt_length :], loaded.eos_id)
    return {
        "seconds": spread,
        "tokens_per_second": case.tokens / spread["median"],
        "useful_tokens": useful,
        "useful_tokens_per_second": useful / spread["median"],
    }


def useful_tokens(answers: Tensor, eos_id: int | None) -> int:
    """Tokens up to the first end-of-text of each row, that one included; all of them where nothing ends an answer.

    Example:
        >>> useful_tokens(torch.tensor([[5, 2, 6], [5, 6, 7]]), eos_id=2)
        5
    """
    if eos_id is None:
        return answers.numel()
    ends = answers == eos_id
    return int((ends.cumsum(dim=1) - ends.long() == 0).sum())


def taken_apart(runs: list[Split], result: Result) -> Result:
    """Forward passes of a run, tokens per forward pass of a row, and median milliseconds per step, one forward pass, in
    all and of each part; None where a provider cannot tell it. `result` holds what the counted runs took."""
    if not runs:
        return {}
    forwards, milliseconds = runs[-1].forwards, {}
    for part in ("body", "head_sampling", "transfer"):
        seconds = [getattr(run, part) for run in runs]
        milliseconds[part] = None if None in seconds else 1000 * statistics.median(seconds) / forwards
    found = {"forwards": forwards, "split_ms_per_step": milliseconds, "note": runs[-1].note}
    if "seconds" in result:
        found["ms_per_step"] = {q: 1000 * result["seconds"][q] / forwards for q in ("median", "p10", "p90")}
        found["tokens_per_forward"] = result["useful_tokens"] / runs[-1].row_forwards
    return found


def compare(results: dict[str, Result], canvases: dict[str, Tensor], case: Case, why_not: str | None = None) -> None:
    """Add speed-up over the authors' loop and the share of equal tokens, or why there is none, to every result.

    Ours is held against the canvas called "judge" where there is one, else against the authors' loop where that draws
    no random numbers. `why_not` says why a judge is missing.
    """
    base = results.get("card", {}).get("tokens_per_second")
    for name, result in results.items():
        if base and "tokens_per_second" in result:
            result["speedup"] = result["tokens_per_second"] / base
        if name == "card" or name not in canvases:
            continue
        ours = name.startswith("ours")
        judge = canvases.get("judge") if ours and "judge" in canvases else canvases.get("card")
        if judge is None:
            result["same_tokens_why_not"] = (
                "the card's loop was not run" if case.sampler == "generate" else "its authors' loop was not run"
            )
        elif ours and not case.deterministic and "judge" not in canvases:
            result["same_tokens_why_not"] = why_not or "other random numbers; see --check-noise"
        else:
            equal = canvases[name][:, case.prompt_length :] == judge[:, case.prompt_length :]
            result["same_tokens"] = equal.float().mean().item()


def random_prompt(loaded: models.Loaded, case: Case) -> Tensor:
    """Random tokens [B, P], no mask token among them."""
    generator = torch.Generator().manual_seed(case.seed)
    tokens = torch.randint(loaded.vocab_size - 1, (case.batch, case.prompt_length), generator=generator)
    return (tokens + (tokens >= loaded.mask_id)).to(case.device)
