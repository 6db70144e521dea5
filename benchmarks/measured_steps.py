"""Single denoising steps of every program in a case: interleaved runs of a few steps each, every step timed by part.

A whole run of 256 steps of a published loop takes a quarter of an hour on a CPU. So runs of a few steps are timed,
:attr:`benchmarks.case.Case.measured`, whose canvas and mean number of masked positions are those of the whole run; the
speed of the whole run is computed from them.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import models, providers, report, timing
from benchmarks.case import Case
from benchmarks.failures import Result, failures_in
from benchmarks.measure import compare, random_prompt
from benchmarks.providers import Split


def measure(
    loaded: models.Loaded,
    case: Case,
    names: Sequence[str],
    repeats: int,
    *,
    prompt: Tensor | None = None,
    check_noise: bool = False,
    deadline: float | None = None,
) -> dict[str, Result]:
    """Measure the providers called `names` on the steps that a case says; arguments as in `benchmarks.measure`.

    Returns:
        The numbers of each provider, or {"error": reason}.
    """
    whole = replace(case, prompt_length=case.prompt_length + case.gen_length)
    prompt = random_prompt(loaded, whole) if prompt is None else prompt
    results: dict[str, Result] = {name: {} for name in names}
    runs: dict[str, list[Split]] = {name: [] for name in names}
    with report.progress(total=len(names) * (1 + repeats) + check_noise) as begin:
        for name in names:
            begin(f"{case.title}: first run of {name}")
            with failures_in(results, name):
                providers.build(name, loaded, _shortest(case), prompt).split()

        def once(name: str) -> None:
            begin(f"{case.title}: {name}")
            with failures_in(results, name), timing.PeakMemory(prompt.device) as memory:
                runs[name].append(providers.build(name, loaded, case, prompt).split())
            results[name] = {"peak_bytes": memory.bytes, "peak_how": memory.how} | results[name]

        calls = {name: functools.partial(once, name) for name in names if "error" not in results[name]}
        timing.interleave(calls, repeats, deadline)
        for name in names:
            if runs[name]:
                results[name] |= rates(runs[name], providers.case_of(name, case))
        # the full canvas is another run, of fewer steps
        canvases = {name: found[-1].canvas for name, found in runs.items() if found and name != "full-canvas"}
        judging: dict[str, Result] = {}
        if check_noise and not case.deterministic:
            begin(f"{case.title}: the authors' loop on dllm's noise")
            timed = case.measured
            with failures_in(judging, "judge"):
                canvases["judge"] = providers.philox_check(loaded, timed, prompt[:, : timed.prompt_length])
    compare(results, canvases, case.measured, why_not=judging.get("judge", {}).get("error"))
    compare_steps(results, runs)
    if runs.get("ours-eager"):
        results["ours-eager"]["product_ms"] = product_ms(loaded, case)
    return results


def _shortest(case: Case) -> Case:
    """The last two tokens of the same canvas, in one step or two: a first run of all operations."""
    given = case.prompt_length + case.gen_length - 2
    one = None if case.steps is None else 1
    return replace(case, prompt_length=given, gen_length=2, block_length=2, steps=one, measured_steps=1)


def rates(runs: Sequence[Split], case: Case) -> Result:
    """Speed and parts of a provider's runs of its case.

    Seconds are medians over runs. `mean_ms_per_step` is the mean over steps, with the step's share of what comes before
    the first one of a whole run. The parts add up to it; `rest` is what no other part is.
    """
    forwards = runs[-1].forwards
    steps_of_whole = case.steps or forwards * case.blocks
    steps = [statistics.median(seconds) for seconds in zip(*(run.steps for run in runs), strict=True)]
    setup = statistics.median(run.setup for run in runs)
    mean = 1000 * (sum(steps) / forwards + setup / steps_of_whole)

    def mean_ms(part: str) -> float:
        return 1000 * statistics.median(getattr(run, part) for run in runs) / forwards

    parts = {part: mean_ms(part) for part in ("body", "head_sampling", "transfer")}
    # steps of a number commit more tokens in the timed run than in the whole one
    tokens = case.gen_length / case.steps if case.steps else case.measured.gen_length / forwards
    return {
        "forwards": forwards,
        "tokens_per_forward": tokens,
        "tokens_per_second": 1000 * case.batch * tokens / mean,
        "mean_ms_per_step": mean,
        "ms_per_step": timing.summary([1000 * seconds for run in runs for seconds in run.steps]),
        "split_ms_per_step": parts | {"rest": max(mean - sum(parts.values()), 0.0)},
        "head_ms_per_step": None if runs[-1].head is None else mean_ms("head"),
        "setup_ms": 1000 * setup,
    }


def compare_steps(results: dict[str, Result], runs: dict[str, list[Split]]) -> None:
    """Add to every result the quantiles of its speed-up over "card", step by step and round by round."""
    for name, own in runs.items():
        pairs = list(zip(runs.get("card", []), own, strict=False))
        ratios = [
            theirs / ours
            for before, after in pairs
            if len(before.steps) == len(after.steps)
            for theirs, ours in zip(before.steps, after.steps, strict=True)
        ]
        if name != "card" and ratios:
            results[name]["speedup_of_steps"] = timing.summary(ratios)
    base = results.get("full-canvas", {}).get("tokens_per_second")
    for name, result in results.items():
        if base and name != "full-canvas" and "tokens_per_second" in result:
            result["speedup_over_full_canvas"] = result["tokens_per_second"] / base


def product_ms(loaded: models.Loaded, case: Case, repeats: int = 5) -> float:
    """Milliseconds of the bare product of the head with as many rows as a step has masked positions on average."""
    timed, weight = case.measured, loaded.model.get_output_embeddings().weight
    steps = timed.steps or timed.gen_length
    rows = max(round(case.batch * timed.gen_length * (1 + 1 / steps) / 2), 1)
    hidden = torch.randn(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
    product = functools.partial(torch.nn.functional.linear, hidden, weight)
    return 1000 * timing.median_seconds(product, weight.device, repeats=repeats)
