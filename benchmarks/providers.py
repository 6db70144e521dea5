"""Providers: the programs that `sampler_throughput` compares, each as one call that completes a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import card_loop, loops, models, timing
from benchmarks.case import Case
from benchmarks.models import Loaded

NAMES = ("card", "card-compile", "card-reduce-overhead", "ours-eager", "ours-graph")
# mode of torch.compile; the second captures CUDA graphs and takes longest to start
COMPILED = {"card-compile": "default", "card-reduce-overhead": "reduce-overhead"}


@dataclass(frozen=True, slots=True)
class Split:
    """Seconds of the parts of a run; None where a provider cannot separate a part from the one before it.

    forwards: forward passes of the model. row_forwards: the sum over forward passes of the rows that took part.
    """

    body: float | None
    head_sampling: float | None
    transfer: float | None
    forwards: int
    row_forwards: int
    note: str = ""


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
    """The provider called `name`, ready for its first run; raises what the program itself raises."""
    if name == "card":
        return _card(name, loaded, case, prompt, loaded.model)
    if name in COMPILED:
        torch._dynamo.reset()  # else a later case, of another shape, would be compiled with dynamic shapes
        return _card(name, loaded, case, prompt, torch.compile(loaded.model, mode=COMPILED[name]))
    if name in ("ours-eager", "ours-graph"):
        return _ours(name, loaded, case, prompt)
    raise ValueError(f"provider must be one of {', '.join(NAMES)}, got {name!r}")


def default_names(device: torch.device) -> list[str]:
    """The providers compared by default: on a GPU also the compiled card loop and CUDA graphs."""
    return (
        [name for name in NAMES if name != "card-reduce-overhead"] if device.type == "cuda" else ["card", "ours-eager"]
    )


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
            watch.mark("body" if compiled else "head")
            return output

        # a hook inside a compiled model would change what is compiled, so body and head are timed together there
        head = nn.Identity() if compiled else loaded.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda *_: watch.mark("body"))
        try:
            torch.manual_seed(case.seed)
            loops.authors_loop(forward, prompt, case, loaded, mark=watch.mark)
        finally:
            hook.remove()
        parts = watch.seconds()
        return Split(
            parts["body"],
            parts["head"],
            parts["transfer"],
            forwards=forwards,
            row_forwards=forwards * case.batch,
            note="body includes the head" if compiled else "",
        )

    return Provider(name, complete, split)


def _ours(name: str, loaded: Loaded, case: Case, prompt: Tensor) -> Provider:
    """`dllm.fast.generate` or a sampler of dllm, eager or with CUDA graphs; there is no fallback between the two."""
    from dllm.fast.sampling import graphs

    graph = name == "ours-graph"
    run = _generate(loaded, case, prompt, graph) if case.sampler == "generate" else _sample(loaded, case, prompt, graph)
    if graph:
        graphs.CACHE.clear()  # so that the first run captures and its memory is measured

    def split() -> Split:
        canvas, stats = run(case.steps, True)
        counts = {"forwards": stats.forwards, "row_forwards": sum(stats.row_forwards)}
        if not graph:
            return Split(stats.body_seconds, stats.head_seconds, stats.transfer_seconds, **counts)
        if case.cfg_scale:
            canvas = torch.cat([canvas, canvas])
        body = stats.forwards * graphed_body_seconds(loaded, canvas)
        note = "body replayed alone; head+sampling includes the transfer"
        return Split(body, stats.seconds - body, None, **counts, note=note)

    return Provider(name, lambda steps: run(steps, False), split, captures=graph)


def _generate(loaded: Loaded, case: Case, prompt: Tensor, graph: bool) -> Callable[[int | None, bool], object]:
    """`dllm.fast.generate` as a function of the number of steps and of whether to return stats beside the canvas."""
    from dllm.fast import generate

    fixed = {"mask_id": loaded.mask_id, "seed": case.seed, "cuda_graph": graph}

    def run(steps: int | None, stats: bool) -> object:
        return generate(loaded.model, prompt, **case.loop_arguments(steps), **fixed, return_stats=stats)

    return run


def _sample(loaded: Loaded, case: Case, prompt: Tensor, graph: bool) -> Callable[[int | None, bool], object]:
    """The case's sampler as a function of the same two arguments."""
    sampler = loops.our_sampler(case, loaded)

    def run(steps: int | None, stats: bool) -> object:
        settings = loops.our_settings(case, steps)
        output = sampler.sample(prompt, cuda_graph=graph, return_dict=stats, **settings)
        return (output.sequences, output.stats) if stats else output

    return run


def graphed_body_seconds(loaded: Loaded, canvas: Tensor, replays: int = 20) -> float:
    """Mean seconds of a replay of the transformer's body alone, captured as a CUDA graph, over `replays` in a row."""
    from dllm.fast.head.split import SplitModel

    tap = SplitModel(loaded.model, canvas[:1])
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
