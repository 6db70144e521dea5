"""The programs that `sampler_throughput` compares, each as one call that completes a prompt."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from benchmarks import card_loop, models, timing
from benchmarks.models import Loaded

NAMES = ("card", "card-compile", "ours-eager", "ours-graph")


@dataclass(frozen=True, slots=True)
class Case:
    """One setting of the loop; every provider gets the same."""

    model: str
    dtype: str
    device: str
    batch: int = 1
    prompt_length: int = 64
    gen_length: int = 128
    block_length: int = 64
    steps: int = 128
    temperature: float = 0.0
    cfg_scale: float = 0.0
    remasking: str = "low_confidence"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "prompt_length", "gen_length", "block_length", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("temperature", "cfg_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        if self.gen_length % self.block_length:
            raise ValueError(f"gen_length {self.gen_length} is not a multiple of block_length {self.block_length}")
        if self.steps % self.blocks:
            raise ValueError(f"steps {self.steps} is not a multiple of the {self.blocks} blocks")

    @property
    def blocks(self) -> int:
        return self.gen_length // self.block_length

    @property
    def deterministic(self) -> bool:
        """Whether no random number is drawn."""
        return self.temperature == 0 and self.remasking == "low_confidence"

    @property
    def tokens(self) -> int:
        """Tokens generated in one run."""
        return self.batch * self.gen_length

    @property
    def title(self) -> str:
        return f"{self.model} {self.dtype}, batch {self.batch}, temperature {self.temperature:g}"

    @property
    def slug(self) -> str:
        """A file name that tells the case."""
        return (
            f"{self.model}-{self.dtype}-{self.device}-b{self.batch}-p{self.prompt_length}-g{self.gen_length}"
            f"-k{self.block_length}-s{self.steps}-t{self.temperature:g}-c{self.cfg_scale:g}-{self.remasking}"
        )

    def loop_arguments(self, steps: int | None = None) -> dict[str, object]:
        """The arguments that the model card's loop and `dllm.fast.generate` share."""
        shared = ("gen_length", "block_length", "temperature", "cfg_scale", "remasking")
        return {"steps": steps or self.steps} | {name: asdict(self)[name] for name in shared}


@dataclass(frozen=True, slots=True)
class Split:
    """Seconds of a run's parts; None where a provider cannot tell a part from the one before it."""

    body: float | None
    head_sampling: float | None
    transfer: float | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Provider:
    """One program under measurement.

    complete: a run of so many steps, [B, P + G]. split: one run taken apart. captures: memory is taken while the first
    run captures, and none later, so that is the run whose peak counts.
    """

    name: str
    complete: Callable[[int], Tensor]
    split: Callable[[], Split]
    captures: bool = False


def build(name: str, loaded: Loaded, case: Case, prompt: Tensor) -> Provider:
    """The provider called `name`, ready for its warm-up run; raises what the program itself raises."""
    if name == "card":
        return _card(loaded, case, prompt, loaded.model)
    if name == "card-compile":
        torch._dynamo.reset()  # cases differ in shape; without it later ones would be measured with dynamic shapes
        return _card(loaded, case, prompt, torch.compile(loaded.model))
    if name in ("ours-eager", "ours-graph"):
        return _ours(name, loaded, case, prompt)
    raise ValueError(f"provider must be one of {', '.join(NAMES)}, got {name!r}")


def default_names(device: torch.device) -> list[str]:
    """What is compared where nothing was asked for: graphs and the compiled card loop belong to GPUs."""
    return list(NAMES) if device.type == "cuda" else ["card", "ours-eager"]


def philox_check(loaded: Loaded, case: Case, prompt: Tensor) -> Tensor:
    """The card's loop on the random stream of `dllm.fast.generate`: the tokens that ours must give."""
    noise = card_loop.PhiloxNoise([case.seed + row for row in range(case.batch)])
    return card_loop.generate(loaded.model, prompt, **case.loop_arguments(), mask_id=loaded.mask_id, noise=noise)


def _card(loaded: Loaded, case: Case, prompt: Tensor, model: Callable[[Tensor], object]) -> Provider:
    """The model card's loop around `model`, which is the loaded one or its compiled form."""
    compiled = model is not loaded.model
    canvas_tokens = case.batch * (case.prompt_length + case.gen_length)
    models.check_logits_fit(loaded, canvas_tokens * (2 if case.cfg_scale else 1))

    def complete(steps: int) -> Tensor:
        torch.manual_seed(case.seed)
        return card_loop.generate(model, prompt, **case.loop_arguments(steps), mask_id=loaded.mask_id)

    def split() -> Split:
        watch = timing.Stopwatch(prompt.device)

        def forward(canvas: Tensor) -> object:
            output = model(canvas)
            watch.mark("body" if compiled else "head")
            return output

        # a hook inside a compiled model would change what is compiled: there the body is timed with its head
        head = nn.Identity() if compiled else loaded.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda *_: watch.mark("body"))
        try:
            torch.manual_seed(case.seed)
            card_loop.generate(forward, prompt, **case.loop_arguments(), mask_id=loaded.mask_id, mark=watch.mark)
        finally:
            hook.remove()
        parts = watch.seconds()
        return Split(parts["body"], parts["head"], parts["transfer"], "body includes the head" if compiled else "")

    return Provider("card-compile" if compiled else "card", complete, split)


def _ours(name: str, loaded: Loaded, case: Case, prompt: Tensor) -> Provider:
    """`dllm.fast.generate`, eager or under CUDA graphs; an explicit choice of either never falls back."""
    from dllm.fast import generate, graphs

    graph = name == "ours-graph"
    fixed = {"mask_id": loaded.mask_id, "seed": case.seed, "cuda_graph": graph}
    if graph:
        graphs.CACHE.clear()  # so that the first run captures, and its memory is its own

    def complete(steps: int) -> Tensor:
        return generate(loaded.model, prompt, **case.loop_arguments(steps), **fixed)

    def split() -> Split:
        canvas, stats = generate(loaded.model, prompt, **case.loop_arguments(), **fixed, return_stats=True)
        if not graph:
            return Split(stats.body_seconds, stats.head_seconds, stats.transfer_seconds)
        if case.cfg_scale:
            canvas = torch.cat([canvas, canvas])
        body = stats.forwards * graphed_body_seconds(loaded, canvas)
        return Split(body, stats.seconds - body, None, "body replayed alone; head+sampling includes the transfer")

    return Provider(name, complete, split, captures=graph)


def graphed_body_seconds(loaded: Loaded, canvas: Tensor, replays: int = 20) -> float:
    """Seconds of one replay of the model's body alone, captured as a CUDA graph; the mean of many back to back."""
    from dllm.fast.head import HeadTap

    tap = HeadTap(loaded.model, canvas[:1])
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
