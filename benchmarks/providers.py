"""Providers: the programs that `sampler_throughput` compares, each as one call that completes a prompt."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks import card_loop, loops, models, timing
from benchmarks.case import Case
from benchmarks.models import Loaded
from dllm.fast import quantize

NAMES = ("card", "card-compile", "card-reduce-overhead", "full-canvas", "ours-eager", "ours-graph")
NAMES += ("ours-compiled", "ours-graph-compiled")  # the body through torch.compile, inside dllm's loop
NAMES += ("ours-int8",)
# mode of torch.compile; the second captures CUDA graphs and takes longest to start
COMPILED = {"card-compile": "default", "card-reduce-overhead": "reduce-overhead"}
OnStep = Callable[[object], None] | None  # called after each step


@dataclass(frozen=True, slots=True)
class Split:
    """Seconds of the parts of a run; None where a provider cannot separate a part from the one before it.

    forwards: forward passes of the model. row_forwards: the sum over forward passes of the rows that took part.
    head: of head_sampling, the product with the head alone. steps: seconds of each step; empty where a step cannot be
    told from the next. setup: seconds before the first step. canvas: what the run returned.
    """

    body: float | None
    head_sampling: float | None
    transfer: float | None
    forwards: int
    row_forwards: int
    note: str = ""
    head: float | None = None
    steps: Sequence[float] = ()
    setup: float = 0.0
    canvas: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Provider:
    """One program under measurement.

    complete: runs it with a number of steps and returns [B, P + G]. split: runs it and times its parts. captures: the
    first run captures CUDA graphs and allocates all memory, so its peak is the one that counts.
    """

    name: str
    complete: Callable[[int | None], Tensor]
    split: Callable[[], Split]
    captures: bool = False


def build(name: str, loaded: Loaded, case: Case, prompt: Tensor) -> Provider:
    """The provider called `name`, ready for its first run; raises what the program itself raises.

    Args:
        prompt: int64 [B, P]; where the case measures only some steps, as many columns as the canvas has, of which the
            run that is timed takes the first as its prompt.
    """
    case = case_of(name, case).measured
    prompt = prompt[:, : case.prompt_length]
    if name in ("card", "full-canvas"):
        return _card(name, loaded, case, prompt, loaded.model)
    if name in COMPILED:
        torch._dynamo.reset()  # else a later case, of another shape, would be compiled with dynamic shapes
        return _card(name, loaded, case, prompt, torch.compile(loaded.model, mode=COMPILED[name]))
    if name == "ours-int8":  # approximate: other tokens than those of the weights in full
        quantized = replace(loaded, model=quantize(copy.deepcopy(loaded.model)))
        return replace(_ours("ours-eager", quantized, case, prompt), name=name)
    if name.startswith("ours-"):
        return _ours(name, loaded, case, prompt)
    raise ValueError(f"provider must be one of {', '.join(NAMES)}, got {name!r}")


def case_of(name: str, case: Case) -> Case:
    """The case that the provider called `name` runs: of "full-canvas" LLaDA's generate, all columns and a token a step.

    Raises:
        ValueError: "full-canvas" and a sampler other than those of Fast-dLLM.
    """
    if name != "full-canvas":
        return case
    if not case.sampler.startswith("fast-dllm-"):
        raise ValueError(f"full-canvas is for the samplers of Fast-dLLM, which have a cache, got {case.sampler}")
    return replace(case, sampler="llada", steps=case.gen_length, remasking="low_confidence", options={})


def default_names(device: torch.device) -> list[str]:
    """The providers compared by default: on a GPU also the compiled card loop and CUDA graphs."""
    return ["card", "card-compile", "ours-eager", "ours-graph"] if device.type == "cuda" else ["card", "ours-eager"]


def philox_check(loaded: Loaded, case: Case, prompt: Tensor) -> Tensor:
    """The tokens of the authors' loop on the random stream of `dllm.fast`: those that dllm must give."""
    noise = card_loop.PhiloxNoise([case.seed + row for row in range(case.batch)])
    return loops.authors_loop(loaded.model, prompt, case, loaded, noise=noise)


def _card(name: str, loaded: Loaded, case: Case, prompt: Tensor, model: Callable[[Tensor], object]) -> Provider:
    """The authors' loop around `model`: the loaded model or its compiled form."""
    compiled = model is not loaded.model
    canvas_tokens = case.batch * (case.prompt_length + case.gen_length)
    models.check_logits_fit(loaded, canvas_tokens * (2 if case.cfg_scale else 1))

    def complete(steps: int | None) -> Tensor:
        torch.manual_seed(case.seed)
        return loops.authors_loop(model, prompt, case, loaded, steps=steps)

    def split() -> Split:
        watch, forwards = timing.Stopwatch(prompt.device), 0

        def forward(canvas: Tensor, **beside: object) -> object:
            nonlocal forwards
            forwards += 1
            output = model(canvas, **beside)
            watch.mark("body" if compiled else "product")
            return output

        # a hook inside a compiled model would change what is compiled, so body and head are timed together there
        head = nn.Identity() if compiled else loaded.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda *_: watch.mark("body"))
        try:
            torch.manual_seed(case.seed)
            canvas = loops.authors_loop(forward, prompt, case, loaded, mark=watch.mark)
        finally:
            hook.remove()
        parts = watch.seconds()
        return Split(
            parts["body"],
            parts["head"] + parts.get("product", 0),
            parts["transfer"],
            forwards=forwards,
            row_forwards=forwards * case.batch,
            note="body includes the head" if compiled else "",
            head=parts.get("product"),
            steps=watch.laps("transfer"),
            canvas=canvas,
        )

    return Provider(name, complete, split)


def _ours(name: str, loaded: Loaded, case: Case, prompt: Tensor) -> Provider:
    """`dllm.fast.generate` or a sampler of dllm, with CUDA graphs or without, the body compiled or not; there is no
    fallback between these."""
    from dllm.fast.sampling import graphs

    graph = name.startswith("ours-graph")
    how = {"cuda_graph": graph, "compile_body": name.endswith("-compiled")}
    run = (_generate if case.sampler == "generate" else _sample)(loaded, case, prompt, how)
    if graph:
        graphs.CACHE.clear()  # so that the first run captures and its memory is measured

    def split() -> Split:
        if not graph:
            return timed_by_step()
        canvas, stats = run(case.steps, True)
        counts = {"forwards": stats.forwards, "row_forwards": sum(stats.row_forwards), "canvas": canvas}
        if case.cfg_scale:
            canvas = torch.cat([canvas, canvas])
        body = stats.forwards * graphed_body_seconds(loaded, canvas, compiled=how["compile_body"])
        note = "body replayed alone; head+sampling includes the transfer"
        return Split(body, stats.seconds - body, None, **counts, note=note)

    def timed_by_step() -> Split:
        watch = timing.Stopwatch(prompt.device)
        hook = loaded.model.register_forward_pre_hook(lambda *_: watch.mark("call"))
        try:
            canvas, stats = run(case.steps, True, lambda step: watch.mark("step"))
        finally:
            hook.remove()
        before_and_first, *others = watch.laps("step")
        first = watch.first_lap("step", began="call")  # a step calls the model once; the checks before it do, too
        return Split(
            stats.body_seconds,
            stats.head_seconds,
            stats.transfer_seconds,
            forwards=stats.forwards,
            row_forwards=sum(stats.row_forwards),
            steps=[first, *others],
            setup=before_and_first - first,
            canvas=canvas,
        )

    return Provider(name, lambda steps: run(steps, False), split, captures=graph)


def _generate(loaded: Loaded, case: Case, prompt: Tensor, how: dict[str, bool]) -> Callable[..., object]:
    """`dllm.fast.generate` as a function of the number of steps, of whether to return stats too, and of `on_step`."""
    from dllm.fast import generate

    fixed = {"mask_id": loaded.mask_id, "seed": case.seed, **how}

    def run(steps: int | None, stats: bool, on_step: OnStep = None) -> object:
        shared = case.loop_arguments(steps) | fixed
        return generate(loaded.model, prompt, **shared, return_stats=stats, on_step=on_step)

    return run


def _sample(loaded: Loaded, case: Case, prompt: Tensor, how: dict[str, bool]) -> Callable[..., object]:
    """The case's sampler as a function of the same arguments."""
    sampler = loops.our_sampler(case, loaded)

    def run(steps: int | None, stats: bool, on_step: OnStep = None) -> object:
        settings = loops.our_settings(case, steps)
        output = sampler.sample(prompt, **how, return_dict=stats, on_step=on_step, **settings)
        return (output.sequences, output.stats) if stats else output

    return run


def graphed_body_seconds(loaded: Loaded, canvas: Tensor, replays: int = 20, *, compiled: bool = False) -> float:
    """Mean seconds of a replay of the transformer's body alone, captured as a CUDA graph, over `replays` in a row."""
    from dllm.fast.compiled.body import CompiledBody
    from dllm.fast.head.split import SplitModel

    tap = SplitModel(loaded.model, canvas[:1])
    if compiled:
        tap.body_context = CompiledBody(loaded.model, required=True).in_place
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(2):
            tap.body(canvas, None)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        tap.body(canvas, None)
    back_to_back = timing.wall_seconds(lambda: [graph.replay() for _ in range(replays)], canvas.device)
    return back_to_back / replays
