"""A case of the sampling benchmark: model, shapes, sampler and its options, the same for every program compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from dllm.demo import samplers


@dataclass(frozen=True, slots=True)
class Case:
    """One case of the sampling benchmark.

    Attributes:
        model: a name of :data:`benchmarks.models.PRESETS` or a local folder.
        dtype: of the weights.
        steps: denoising steps; None where the sampler's rule decides how many tokens a step commits.
        remasking: None where the sampler has no such option.
        sampler: "generate", the model card's loop, or a name of :data:`dllm.demo.samplers.SAMPLERS`.
        options: further options of the sampler, by name.
        measured_steps: time only so many steps, see `measured`; None: whole runs.
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
    measured_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "prompt_length", "gen_length", "block_length", "steps", "measured_steps"):
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
        """Number of blocks."""
        return self.gen_length // self.block_length

    @property
    def measured(self) -> Case:
        """The run that is timed in place of the whole one: the last block of the same canvas, in fewer steps.

        The `measured_steps` commit more tokens each than the steps of the whole run. They see as many masked positions
        on average, since some tokens of the block are there from the start. Where a rule decides how many tokens a step
        commits, the run is the whole block.

        Example:
            >>> shape = {"model": "minilm", "dtype": "float32", "device": "cpu", "sampler": "llada"}
            >>> run = Case(**shape, gen_length=256, block_length=256, steps=256, measured_steps=8).measured
            >>> run.prompt_length, run.gen_length, run.steps
            (92, 228, 8)
        """
        if self.measured_steps is None:
            return self
        steps, masks = None, self.block_length
        if self.steps is not None:
            steps_of_block = self.steps // self.blocks
            steps = min(self.measured_steps, steps_of_block)
            # m masks in S equal steps: m (1 + 1 / S) / 2 of them before a step, on average
            masks = max(round(masks * (1 + 1 / steps_of_block) / (1 + 1 / steps)), 1)
        given = self.prompt_length + self.gen_length - masks
        return replace(
            self, prompt_length=given, gen_length=masks, block_length=masks, steps=steps, measured_steps=None
        )

    @property
    def deterministic(self) -> bool:
        """Whether the sampler draws no random number."""
        draws_positions = self.sampler == "dream-origin" or self.options.get("alg_temp")
        return self.temperature == 0 and self.remasking != "random" and not draws_positions

    @property
    def approximate(self) -> bool:
        """Whether the sampler may give other tokens than one token per step would."""
        return samplers.is_approximate(self.sampler)

    @property
    def tokens(self) -> int:
        """Tokens generated in one run, all rows together."""
        return self.batch * self.gen_length

    @property
    def title(self) -> str:
        """Sampler, model, dtype, batch and temperature."""
        model = f"{self.model} {self.dtype}, batch {self.batch}, temperature {self.temperature:g}"
        return model if self.sampler == "generate" else f"{samplers.title(self.sampler)}, {model}"

    @property
    def details(self) -> str:
        """The settings that the title leaves out."""
        steps = "as many steps as it takes" if self.steps is None else f"{self.steps} steps"
        options = [f"{name.replace('_', ' ')} {value:g}" for name, value in self.options.items() if value is not None]
        options = [self.remasking, *options] if self.remasking else options
        return (
            f"prompt {self.prompt_length}, generate {self.gen_length} in {steps}, blocks of {self.block_length}, "
            + "".join(f"{option}, " for option in options)
            + f"guidance {self.cfg_scale:g}"
            + (f", {self.measured.steps or 'all'} steps of the last block timed" if self.measured_steps else "")
        )

    @property
    def slug(self) -> str:
        """The case as part of a file name."""
        approximate = "-approximate" * self.approximate
        sampler = "" if self.sampler == "generate" else f"{self.sampler}{approximate}-"
        steps = "" if self.steps is None else f"-s{self.steps}"
        options = [f"{name}{value:g}" for name, value in self.options.items() if value is not None]
        return (
            f"{sampler}{self.model}-{self.dtype}-{self.device}-b{self.batch}-p{self.prompt_length}-g{self.gen_length}"
            f"-k{self.block_length}{steps}-t{self.temperature:g}-c{self.cfg_scale:g}"
            + "".join(f"-{part}" for part in [self.remasking, *options] if part)
            + (f"-m{self.measured_steps}" if self.measured_steps else "")
        )

    def loop_arguments(self, steps: int | None = None) -> dict[str, object]:
        """The arguments that the model card's loop and `dllm.fast.generate` share."""
        shared = ("gen_length", "block_length", "temperature", "cfg_scale", "remasking")
        return {"steps": steps or self.steps} | {name: asdict(self)[name] for name in shared}
