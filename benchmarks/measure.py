"""Measurement of one case: first runs, interleaved counted runs, runs split into parts, comparison of the tokens."""

from __future__ import annotations

import functools
import statistics
import time

import torch
from torch import Tensor

from benchmarks import models, providers, report, timing
from benchmarks.failures import Result, failures_in
from benchmarks.providers import Case, Provider, Split


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
        check_noise: above temperature 0, compare tokens with the authors' loop on dllm's random stream.
        deadline: no further round starts after it, a value of ``time.monotonic()``.

    Returns:
        The numbers of each provider, or {"error": reason}.
    """
    prompt = random_prompt(loaded, case) if prompt is None else prompt
    results: dict[str, Result] = {}
    ready: dict[str, Provider] = {}
    canvases: dict[str, Tensor] = {}
    judging: dict[str, Result] = {}
    split_runs = max(1, repeats // 2)
    with report.progress(total=len(names) * (1 + repeats + split_runs) + check_noise) as begin:
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
        for _ in timing.rounds(split_runs, deadline):
            for name, provider in ready.items():
                begin(f"{case.title}: parts of {name}")
                with failures_in(results, name), timing.PeakMemory(prompt.device) as memory:
                    splits[name].append(provider.split())
                results[name] = {"peak_bytes": memory.bytes, "peak_how": memory.how} | results[name]
        for name, runs in splits.items():
            results[name] |= split_rates(runs, results[name])
        if check_noise and not case.deterministic:
            begin(f"{case.title}: the authors' loop on dllm's noise")
            with failures_in(judging, "judge"):
                canvases["judge"] = providers.philox_check(loaded, case, prompt)
    compare(results, canvases, case, why_not=judging.get("judge", {}).get("error"))
    return results


def first_run(name: str, loaded: models.Loaded, case: Case, prompt: Tensor) -> tuple[Provider, Result]:
    """Build a provider and run it once, to compile and capture: a whole run on a GPU, one step per block on a CPU."""
    with timing.PeakMemory(prompt.device) as memory:
        start = time.perf_counter()
        provider = providers.build(name, loaded, case, prompt)
        steps = case.steps if prompt.device.type == "cuda" else case.blocks
        provider.complete(steps)  # of no effect on samplers without a number of steps
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
    """Tokens up to and including the first EOS of each row; all tokens where `eos_id` is None.

    Example:
        >>> useful_tokens(torch.tensor([[5, 2, 6], [5, 6, 7]]), eos_id=2)
        5
    """
    if eos_id is None:
        return answers.numel()
    ends = answers == eos_id
    return int((ends.cumsum(dim=1) - ends.long() == 0).sum())


def split_rates(runs: list[Split], result: Result) -> Result:
    """Forward passes, tokens per forward pass of a row, and median milliseconds per step, whole and by part.

    A part that a provider cannot separate is None. `result` holds the times of the counted runs.
    """
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
    """Add to every result its speed-up over the authors' loop and its share of equal tokens, or why there is none.

    Tokens of dllm are compared with canvas "judge" where there is one, otherwise with those of the authors' loop where
    it draws no random numbers. `why_not`: why the judge is missing.
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
            result["same_tokens_why_not"] = why_not or "different random numbers; see --check-noise"
        else:
            equal = canvases[name][:, case.prompt_length :] == judge[:, case.prompt_length :]
            result["same_tokens"] = equal.float().mean().item()


def random_prompt(loaded: models.Loaded, case: Case) -> Tensor:
    """Random tokens [B, P] without the mask token."""
    generator = torch.Generator().manual_seed(case.seed)
    tokens = torch.randint(loaded.vocab_size - 1, (case.batch, case.prompt_length), generator=generator)
    return (tokens + (tokens >= loaded.mask_id)).to(case.device)
