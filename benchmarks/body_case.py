"""A model's body on a CPU in one shape: its floor, several programs for it, and loops around them, timed in turn."""

from __future__ import annotations

import copy
import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import bodies, models, providers, timing
from benchmarks.bodies import Body, OtherBody
from benchmarks.case import Case
from benchmarks.failures import Result, failures_in
from benchmarks.measure import random_prompt
from benchmarks.product_floor import Products, can_pack

CPU = torch.device("cpu")
LOOPS = ("card", "ours-eager")  # run with every body
OWN_LOOPS = tuple(name for name in providers.NAMES if name not in (*LOOPS, "full-canvas") and "graph" not in name)
WARMUP = 2
REST = 0.1  # seconds before a timed call, in which the threads of other libraries stop to wait for work
BLOCK = 64


def run_of(model: str, dtype: str, shape: tuple[int, int], steps: int, temperature: float, seed: int) -> Case:
    """The run that loops are timed on: so many steps of the last block of a canvas [B, L].

    Its tokens are those of a whole run with one token per step and row; see :attr:`benchmarks.case.Case.measured`.
    """
    batch, length = shape
    block = min(BLOCK, length - 1)
    return Case(
        model=model,
        dtype=dtype,
        device="cpu",
        batch=batch,
        prompt_length=length - block,
        gen_length=block,
        block_length=block,
        steps=block,
        temperature=temperature,
        seed=seed,
        measured_steps=steps,
    ).measured


class BodyCase:
    """The measurement of bodies and loops in one shape [B, L].

    Args:
        run: what loops run, see :func:`run_of`; its canvas is the shape of the bodies.
        names: of :data:`benchmarks.bodies.PROGRAMS`.
        loops: of `LOOPS`, which run with every body, and of `OWN_LOOPS`, which bring their own; none: bodies alone.
        begin: announces a part, see report.progress.
    """

    def __init__(
        self,
        loaded: models.Loaded,
        run: Case,
        names: Sequence[str],
        loops: Sequence[str],
        begin: Callable[[str], None],
    ):
        self.loaded, self.run, self.names, self.loop_names, self.begin = loaded, run, names, loops, begin
        canvas = replace(run, prompt_length=run.prompt_length + run.gen_length)
        self.tokens = random_prompt(loaded, canvas)
        self.body = Body(loaded.model).eval()
        self.floors = {"F.linear": Products(self.body, lambda: self.body(self.tokens))}
        if can_pack(models.DTYPES[run.dtype]):
            self.floors["packed"] = Products(self.body, lambda: self.body(self.tokens), packed=True)
        self.bodies: dict[str, Result] = {}
        self.loops: dict[str, Result] = {}
        self.runs: dict[str, bodies.Run] = {}
        self.completions: dict[str, Callable[[int | None], Tensor]] = {}
        self.canvases: dict[str, Tensor] = {}

    def measure(self, repeats: int) -> Result:
        """Everything about this shape, for the row."""
        self.prepare_bodies()
        self.prepare_loops()
        floors = self.time(repeats)
        base = self.loops.get("card: eager", {}).get("tokens_per_second")
        for each in self.loops.values():
            if base and "tokens_per_second" in each:
                each["speedup"] = each["tokens_per_second"] / base
        return {
            "batch": self.run.batch,
            "length": self.tokens.shape[1],
            "floor": {
                "seconds": floors["F.linear"],
                "packed_seconds": floors.get("packed"),
                "flops": self.floors["F.linear"].flops,
            },
            "bodies": self.bodies,
            "loops": self.loops,
        }

    def prepare_bodies(self) -> None:
        """Prepare and check all bodies; a body that fails keeps the reason as its result."""
        truth = Truth(self.body, self.tokens)
        with tempfile.TemporaryDirectory() as folder:
            for name in self.names:
                self.begin(f"{self.title}: preparing {name}")
                self.bodies[name] = {}
                with failures_in(self.bodies, name), torch.no_grad():
                    run = self._prepared(name, Path(folder))
                    self.bodies[name] |= truth.check(run(self.tokens), bodies.PROGRAMS[name].precision)
                    self.runs[name] = run

    def _prepared(self, name: str, folder: Path) -> bodies.Run:
        start = time.perf_counter()
        load = bodies.prepare(name, self.body, self.tokens, folder)
        with timing.PeakMemory(CPU) as loading:
            run = load()
            if bodies.PROGRAMS[name].library:
                run(self.tokens)
        run(self.tokens)  # the compiler runs here, in memory that it frees again
        self.bodies[name]["prepare_seconds"] = time.perf_counter() - start
        with timing.PeakMemory(CPU) as running:
            run(self.tokens)
        own = bodies.PROGRAMS[name].library is not None  # the others run on the model's weights
        self.bodies[name] |= {"loaded_bytes": loading.bytes if own else 0, "peak_bytes": running.bytes}
        return run

    def prepare_loops(self) -> None:
        """Build every loop and run it once. Loops that compile come first: they reset the compiler."""
        pairs = [(loop, "own") for loop in self.loop_names if loop in OWN_LOOPS]
        pairs += [(loop, body) for loop in self.loop_names if loop in LOOPS for body in self.runs]
        prompt = self.tokens[:, : self.run.prompt_length]
        for loop, body in pairs:
            name = f"{loop}: {body}"
            self.begin(f"{self.title}: first run of {name}")
            self.loops[name] = {}
            with failures_in(self.loops, name):
                complete = providers.build(loop, self._model_with(body), self.run, prompt).complete
                complete(None)
                with timing.PeakMemory(CPU) as memory:
                    self.canvases[name] = complete(None)
                self.loops[name]["peak_bytes"] = memory.bytes
                self.completions[name] = complete

    def _model_with(self, body: str) -> models.Loaded:
        if body in ("own", "eager"):
            return self.loaded
        return replace(self.loaded, model=OtherBody(self.loaded.model, self.runs[body], self.tokens.shape))

    def time(self, repeats: int) -> Result:
        """Time floors, bodies and loops, interleaved; the seconds of the floors."""
        calls = {f"floor: {name}": products for name, products in self.floors.items()}
        calls |= {f"body: {name}": functools.partial(run, self.tokens) for name, run in self.runs.items()}
        calls |= {name: functools.partial(complete, None) for name, complete in self.completions.items()}

        def once(name: str) -> float:
            self.begin(f"{self.title}: {name}")
            time.sleep(REST)
            return timing.host_seconds(calls[name])

        with torch.no_grad():
            for name in [name for name in calls if name not in self.completions] * WARMUP:
                calls[name]()
            seconds = timing.interleave({name: functools.partial(once, name) for name in calls}, repeats)
        floors = {name: timing.summary(seconds.pop(f"floor: {name}")) for name in self.floors}
        for name in self.runs:
            spread = timing.summary(seconds.pop(f"body: {name}"))
            self.bodies[name] |= {"seconds": spread, "share_of_floor": floors["F.linear"]["median"] / spread["median"]}
        for name, taken in seconds.items():
            self.loops[name] |= self._rates(name, taken)
        return floors

    def _rates(self, name: str, seconds: list[float]) -> Result:
        spread = timing.summary([each / self.run.steps for each in seconds])
        found: Result = {"seconds_per_step": spread, "tokens_per_second": self.run.batch / spread["median"]}
        base, new = self.canvases.get("card: eager"), slice(self.run.prompt_length, None)
        if self.run.deterministic and base is not None and name != "card: eager":
            found["same_tokens"] = (self.canvases[name][:, new] == base[:, new]).float().mean().item()
        return found

    @property
    def title(self) -> str:
        """Model, dtype and shape."""
        return f"{Path(self.run.model).name} {self.run.dtype}, {self.run.batch}x{self.tokens.shape[1]}"


class Truth:
    """The body in float64, and the error of eager PyTorch in each precision: what other programs are judged by."""

    def __init__(self, body: Body, tokens: Tensor):
        self.body, self.tokens = body, tokens
        self.own = str(next(body.parameters()).dtype).removeprefix("torch.")
        self.hidden = self._run(torch.float64)

    @torch.no_grad()
    def _run(self, dtype: torch.dtype) -> Tensor:
        return copy.deepcopy(self.body).to(dtype)(self.tokens).double()

    @functools.cache  # noqa: B019 -- lives as long as its shape
    def eager_error(self, precision: str) -> float:
        """The error of eager PyTorch."""
        return self.error(self._run(models.DTYPES[precision]))

    def error(self, hidden: Tensor) -> float:
        """The root of the mean squared error, over that of the true values."""
        return ((hidden.double() - self.hidden).norm() / self.hidden.norm()).item()

    def check(self, hidden: Tensor, precision: str | None) -> Result:
        """The error, and how many times that of eager PyTorch it is; `precision` None: that of the model.

        Raises:
            ValueError: it is more than twice as large, so the program computes something else.
        """
        precision, error = precision or self.own, self.error(hidden)
        if precision not in models.DTYPES:  # int8: approximate, nothing in PyTorch to judge it by
            return {"precision": precision, "relative_error": error}
        times = error / self.eager_error(precision)
        if not times <= 2:
            raise ValueError(f"the error must be at most twice that of eager {precision}, got {times:.3g} times it")
        return {"precision": precision, "relative_error": error, "times_eager_error": times}
