"""Dream's and LLaDA's published loops against dllm's samplers, on models of half a billion parameters on a CPU.

    python benchmarks/families.py

bfloat16, 256 new tokens, batch 1 and 4, on random weights:

- Dream's `diffusion_generate`, alg entropy, temperature 0.2, top_p 0.95, 256 steps, against DreamSampler;
- LLaDA's `generate`, low_confidence, temperature 0, blocks of 32, 256 steps, against LLaDASampler;
- FastDLLMSampler with the dual cache and threshold 0.9 against Fast-dLLM's own loop and, a token, LLaDA's on the whole
  canvas. Random weights never reach 0.9, so that a step commits one token.

Six steps of each run are timed, twice (see `benchmarks.measured_steps`), with the dual cache a whole block. The rows
are those of `benchmarks/sampler_throughput.py`; options given here are passed on to it. Two quiet cores need about 11
minutes.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import sampler_throughput
from dllm.exits import exit_code

SHARED = "--dtype bfloat16 --device cpu --batch 1 4 --gen-length 256 --measured-steps 6 --repeats 2"
CASES = (
    "--model dream-0.5b --sampler dream-entropy --temperature 0.2 --top-p 0.95 --steps 256",
    "--model llada-0.5b --sampler llada --block-length 32 --steps 256",
    "--model llada-0.5b --sampler fast-dllm-dual --block-length 32 --threshold 0.9 "
    "--providers card full-canvas ours-eager",
)


def main(arguments: list[str] | None = None) -> int:
    """Measure all cases; the highest exit status of them."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return max(sampler_throughput.main([*case.split(), *SHARED.split(), *arguments]) for case in CASES)


if __name__ == "__main__":
    sys.exit(exit_code("families", main))
