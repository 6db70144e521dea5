"""Every sampler as a plain loop over one row: the judges of the samplers that share one fast loop.

Written to be read, not to be fast. A row is processed alone and unpadded, every step runs the model on its whole canvas
(where a method keeps keys and values that grow stale, on what that method runs) and keeps every logit in float32; rows
of a batch do not know each other, so a row alone is the truth for any batch.

    row.py          a row: canvas, forward, guidance, suppression, shift, choice, commit, stop at EOS
    schedules.py    how many tokens each step commits
    rules.py        which of the eligible positions are committed
    scheduled.py    mdlm_sample, mdlm_infill, llada
    dream.py        dream
    rnd1.py         rnd1
    approximate.py  threshold_decode (threshold or factor), llada2, entropy_bound
    views.py        what a block-causal row and a cache show the model
    cached.py       bd3lm, llada2_block_causal, llada2_infill, llada21, fast_dllm
    nemotron_diffusion.py   nemotron_diffusion
    difference.py   where a row leaves its judge, and whether a near tie explains it

Noise is this library's stream (:mod:`dllm_kernels.philox`), addressed by the row's seed, the position in the row's own
canvas and the step within the block: 0 for the first step that the block runs, where schedule B and the counts of
Dream's time grid have dropped the steps that commit nothing. What is drawn:

    tokens                      l + T g, g at (seed, token, position, step), stream TOKEN_NOISE
    random confidence, coins    u = uniform(seed, position, step, RANDOM_CONFIDENCE)
    positions with alg_temp     confidence / alg_temp + g, g from words 0 and 1 of block 0 at (seed, position, step)
    stochastic transfer         Binomial(m, p) = number of i < m with u_i < p, u_i from word 0 of block 1 at (seed,
                                first column of the block + i, step of the schedule before zeros are dropped)
"""

from tests.reference_samplers.approximate import entropy_bound, llada2, threshold_decode
from tests.reference_samplers.cached import bd3lm, fast_dllm, llada2_block_causal, llada2_infill, llada21
from tests.reference_samplers.difference import Difference, first_difference
from tests.reference_samplers.dream import dream
from tests.reference_samplers.rnd1 import rnd1
from tests.reference_samplers.row import Step, Trace
from tests.reference_samplers.scheduled import llada, mdlm_infill, mdlm_sample
from tests.reference_samplers.schedules import schedule_a, schedule_b, time_grid

__all__ = [
    "Difference",
    "Step",
    "Trace",
    "bd3lm",
    "dream",
    "entropy_bound",
    "fast_dllm",
    "first_difference",
    "llada",
    "llada2",
    "llada2_block_causal",
    "llada2_infill",
    "llada21",
    "mdlm_infill",
    "mdlm_sample",
    "rnd1",
    "schedule_a",
    "schedule_b",
    "threshold_decode",
    "time_grid",
]
