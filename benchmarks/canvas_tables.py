"""Tables of samplers with loops or caches of their own: DiffusionGemma and its operation alone, Nemotron."""

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
NEMOTRON_HEAD = (
    "vocabulary, rows, temperature, dtype",
    "machine",
    "runs of the model, published loop",
    "sampler",
    "published loop, ms/token",
    "sampler, ms/token",
    "speed-up",
    "peak memory of the published loop, MB",
    "sampler, MB",
    "same tokens",
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


def nemotron_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for each case of a nemotron_diffusion row."""
    programs, settings = ("published", "sampler"), row["settings"]
    new = settings["block"] * settings["blocks"]
    return [
        [
            f"{result['vocab']}, {report.count(result['batch'], 'row')}, {result['temperature']:g}, {result['dtype']}",
            machine.short_name(row["machine"]),
            *(f"{result['runs'][name]}" for name in programs),
            *(f"{1000 * result['seconds'][name]['median'] / (new * result['batch']):.1f}" for name in programs),
            f"{result['speedup']['sampler']:.1f}x",
            *(megabytes(result["peak_bytes"][name]) for name in programs),
            "drawn" if result["same_tokens"] is None else f"{result['same_tokens']:.1%}",
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
