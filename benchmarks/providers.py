"""The programs that `sampler_throughput` compares, each as one call that completes a prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from benchmarks import card_loop, loops, models, timing
from benchmarks.models import Loaded
from dllm.demo import samplers

NAMES = ("card", "card-compile", "card-reduce-overhead", "ours-eager", "ours-graph")
# what torch.compile is asked for; the second captures CUDA graphs and takes longest to begin
COMPILED = {"card-compile": "default", "card-reduce-overhead": "reduce-overhead"}


@dataclass(frozen=True, slots=True)
class Case:
    """One setting of a sampler's loop; every provider gets the same.

    sampler: "generate", the model card's loop, or a name of :data:`dllm.demo.samplers.SAMPLERS`. options: its own, by
    name. steps: None where the sampler commits what a rule allows. remasking: None where it has no such option.
    """

    model: str
    dtype: str
    device: str
    batch: int = 1
    prompt_length: int = 64
    gen_length: int = 128
    block_length: int = 64
    steps: int | None = 128
    temperature: float = 0.0
    cfg_scale: float = 0.0
    remasking: str | None = "low_confidence"
    seed: int = 0
    sampler: str = "generate"
    options: Mapping[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("batch", "prompt_length", "gen_length", "block_length", "steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("temperature", "cfg_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        for name, value in self.options.items():
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        if self.gen_length % self.block_length:
            raise ValueError(f"gen_length {self.gen_length} is not a multiple of block_length {self.block_length}")
        if self.steps is not None and self.steps % self.blocks:
            raise ValueError(f"steps {self.steps} is not a multiple of the {self.blocks} blocks")

    @property
    def blocks(self) -> int:
        return self.gen_length // self.block_length

    @property
    def deterministic(self) -> bool:
        """Whether no random number is drawn."""
        draws_places = self.sampler == "dream-origin" or self.options.get("alg_temp")
        return self.temperature == 0 and self.remasking != "random" and not draws_places

    @property
    def approximate(self) -> bool:
        """Whether the sampler trades tokens for speed."""
        return samplers.is_approximate(self.sampler)

    @property
    def tokens(self) -> int:
        """Tokens generated in one run."""
        return self.batch * self.gen_length

    @property
    def title(self) -> str:
        model = f"{self.model} {self.dtype}, batch {self.batch}, temperature {self.temperature:g}"
        return model if self.sampler == "generate" else f"{samplers.title(self.sampler)}, {model}"

    @property
    def told(self) -> str:
        """What the title leaves out, in words."""
        steps = "as many steps as it takes" if self.steps is None else f"{self.steps} steps"
        options = [f"{name.replace('_', ' ')} {value:g}" for name, value in self.options.items() if value is not None]
        options = [self.remasking, *options] if self.remasking else options
        return (
            f"prompt {self.prompt_length}, generate {self.gen_length} in {steps}, blocks of {self.block_length}, "
            + "".join(f"{option}, " for option in options)
            + f"guidance {self.cfg_scale:g}"
        )

    @property
    def slug(self) -> str:
        """A file name that tells the case."""
        approximate = "-approximate" * self.approximate
        sampler = "" if self.sampler == "generate" else f"{self.sampler}{approximate}-"
        steps = "" if self.steps is None else f"-s{self.steps}"
        options = [f"{name}{value:g}" for name, value in self.options.items() if value is not None]
        return (
            f"{sampler}{self.model}-{self.dtype}-{self.device}-b{self.batch}-p{self.prompt_length}-g{self.gen_length}"
            f"-k{self.block_length}{steps}-t{self.temperature:g}-c{self.cfg_scale:g}"
            + "".join(f"-{part}" for part in [self.remasking, *options] if part)
        )

    def loop_arguments(self, steps: int | None = None) -> dict[str, object]:
        """The arguments that the model card's loop and `dllm.fast.generate` share."""
        shared = ("gen_length", "block_length", "temperature", "cfg_scale", "remasking")
        return {"steps": steps or self.steps} | {name: asdict(self)[name] for name in shared}


@dataclass(frozen=True, slots=True)
class Split:
    """A run taken apart: seconds of its parts, None where a provider cannot tell a part from the one before it.

    forwards: how often the model ran. row_forwards: the same, added up over the rows that took part.
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

    complete: a run, [B, P + G], of so many steps where the sampler counts them. split: one run taken apart. captures:
    memory is taken while the first run captures, and none later, so that is the run whose peak counts.
    """

    name: str
    complete: Callable[[int | None], Tensor]
    split: Callable[[], Split]
    captures: bool = False


def build(name: str, loaded: Loaded, case: Case, prompt: Tensor) -> Provider:
    """The provider called `name`, ready for its warm-up run; raises what the program itself raises."""
    if name == "card":
        return _card(name, loaded, case, prompt, loaded.model)
    if name in COMPILED:
        torch._dynamo.reset()  # cases differ in shape; without it later ones would be measured with dynamic shapes
        return _card(name, loaded, case, prompt, torch.compile(loaded.model, mode=COMPILED[name]))
    if name in ("ours-eager", "ours-graph"):
        return _ours(name, loaded, case, prompt)
    raise ValueError(f"provider must be one of {', '.join(NAMES)}, got {name!r}")


def default_names(device: torch.device) -> list[str]:
    """What is compared where nothing was asked for: graphs and the compiled card loop, once, belong to GPUs."""
    return (
        [name for name in NAMES if name != "card-reduce-overhead"] if device.type == "cuda" else ["card", "ours-eager"]
    )


def philox_check(loaded: Loaded, case: Case, prompt: Tensor) -> Tensor:
    """The authors' loop on the random stream of `dllm.fast`: the tokens that ours must give."""
    noise = card_loop.PhiloxNoise([case.seed + row for row in range(case.batch)])
    return loops.authors_loop(loaded.model, prompt, case, loaded, noise=noise)


def _card(name: str, loaded: Loaded, case: Case, prompt: Tensor, model: Callable[[Tensor], object]) -> Provider:
    """The loop of the model card, or of the sampler's authors, around `model`: the loaded one or its compiled form."""
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

        # a hook inside a compiled model would change what is compiled: there the body is timed with its head
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
    """`dllm.fast.generate` or a sampler of ours, eager or under CUDA graphs; an explicit choice never falls back."""
    from dllm.fast.sampling import graphs

    graph = name == "ours-graph"
    run = _generate(loaded, case, prompt, graph) if case.sampler == "generate" else _sample(loaded, case, prompt, graph)
    if graph:
        graphs.CACHE.clear()  # so that the first run captures, and its memory is its own

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
    """`dllm.fast.generate` as a call with a number of steps and whether to return stats besides the canvas."""
    from dllm.fast import generate

    fixed = {"mask_id": loaded.mask_id, "seed": case.seed, "cuda_graph": graph}

    def run(steps: int | None, stats: bool) -> object:
        return generate(loaded.model, prompt, **case.loop_arguments(steps), **fixed, return_stats=stats)

    return run


def _sample(loaded: Loaded, case: Case, prompt: Tensor, graph: bool) -> Callable[[int | None, bool], object]:
    """The case's sampler as such a call."""
    sampler = loops.our_sampler(case, loaded)

    def run(steps: int | None, stats: bool) -> object:
        settings = loops.our_settings(case, steps)
        output = sampler.sample(prompt, cuda_graph=graph, return_dict=stats, **settings)
        return (output.sequences, output.stats) if stats else output

    return run


def graphed_body_seconds(loaded: Loaded, canvas: Tensor, replays: int = 20) -> float:
    """Seconds of one replay of the model's body alone, captured as a CUDA graph; the mean of many back to back."""
    from dllm.fast.head.tap import HeadTap

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
