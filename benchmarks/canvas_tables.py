"""Tables of uniform diffusion: a step of DiffusionGemma, and its operation on the vocabulary alone."""

from __future__ import annotations

from benchmarks import machine, report
from benchmarks.markdown import megabytes

CANVAS_HEAD = (
    "vocabulary, rows, dtype",
    "machine",
    "body, ms",
    "transformers, ms/step",
    "patched, ms/step",
    "sampler, ms/step",
    "patched is faster",
    "sampler is faster",
    "peak memory of transformers, MB",
    "patched, MB",
    "sampler, MB",
    "command",
)
EMBEDDING_HEAD = (
    "tied head",
    "machine",
    "plain chain, ms",
    "linear_expected_embedding, ms",
    "speed-up",
    "over the same with a stored product",
    "peak memory of stored, MB",
    "ours, MB",
    "same argmax",
    "command",
)


def canvas_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for each case of a diffusion_gemma row."""
    programs = ("transformers", "patched", "sampler")
    canvas = row["settings"]["canvas"]
    return [
        [
            f"{result['vocab']}, {report.count(result['batch'], 'row')} of {canvas}, {result['dtype']}",
            machine.short_name(row["machine"]),
            f"{1000 * result['body_seconds']:.0f}",
            *(f"{1000 * result['step_seconds'][name]['median']:.0f}" for name in programs),
            *(f"{result['speedup'][name]:.1f}x" for name in programs[1:]),
            *(megabytes(result["peak_bytes"][name]) for name in programs),
            f"{commands.index(row['command']) + 1}",
        ]
        for result in row["results"]
    ]


def embedding_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for each head, number of rows and dtype of a cpu_embedding row."""
    return [
        [
            f"{result['head']} {result['dtype']}, {report.count(result['rows'], 'row')}",
            machine.short_name(row["machine"]),
            *(f"{1000 * result['seconds'][name]['median']:.0f}" for name in ("eager", "ours")),
            *(f"{result['speedup'][name]:.1f}x" for name in ("eager", "stored")),
            *(megabytes(result["peak_bytes"][name]) for name in ("stored", "ours")),
            f"{result['equal_tokens']:.1%}",
            f"{commands.index(row['command']) + 1}",
        ]
        for result in row["results"]
    ]
