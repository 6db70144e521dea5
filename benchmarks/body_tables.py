"""Tables of the body on a CPU: programs for it beside the floor of its products, and llama.cpp beside PyTorch."""

from __future__ import annotations

from pathlib import Path

from benchmarks import machine
from benchmarks.markdown import megabytes

BODY_HEAD = (
    "model",
    "machine",
    "batch x canvas",
    "body by",
    "ms",
    "linear layers alone, ms",
    "of the body",
    "error",
    "card's loop, tokens/s",
    "dllm's loop, tokens/s",
    "weights of its own, MB",
    "command",
)
LLAMA_HEAD = (
    "model",
    "machine",
    "T",
    "program",
    "ms/step",
    "tokens/s",
    "error",
    "same tokens",
    "memory, MB",
    "command",
)


def body_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for each body in each shape, and one for each loop with a body of its own."""
    settings = row["settings"]
    shared = [f"{Path(settings['model']).name} {settings['dtype']}", machine.short_name(row["machine"])]
    command, lines = f"{commands.index(row['command']) + 1}", []
    for result in row["results"]:
        where, loops = [*shared, f"{result['batch']} x {result['length']}"], result["loops"]
        floor = result["floor"]["seconds"]["median"]
        for name, body in result["bodies"].items():
            if "seconds" in body:
                took = [1000 * body["seconds"]["median"], 1000 * floor]
                speeds = [_speed(loops.get(f"{loop}: {name}")) for loop in ("card", "ours-eager")]
                lines.append(
                    [
                        *where,
                        name,
                        *(f"{ms:.1f}" for ms in took),
                        f"{body['share_of_floor']:.0%}",
                        f"{body['relative_error']:.1g}",
                        *speeds,
                        megabytes(body["loaded_bytes"]),
                        command,
                    ]
                )
        for name, loop in loops.items():
            if name.endswith(": own"):
                speeds = ["", _speed(loop)] if name.startswith("ours") else [_speed(loop), ""]
                whole = [name.removesuffix(": own"), "", f"{1000 * floor:.1f}", "", ""]
                lines.append([*where, *whole, *speeds, "", command])
    return lines


def _speed(loop: dict | None) -> str:
    return f"{loop['tokens_per_second']:.1f}" if loop and "tokens_per_second" in loop else ""


def llama_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for each program."""
    settings = row["settings"]
    shared = [settings["model"], machine.short_name(row["machine"]), f"{settings['temperature']:g}"]
    return [
        [
            *shared,
            name,
            f"{1000 * result['seconds_per_step']['median']:.0f}",
            f"{result['tokens_per_second']:.2f}",
            f"{result['relative_error']:.1g}" if "relative_error" in result else "",
            f"{result['same_tokens']:.1%}" if "same_tokens" in result else "",
            megabytes(result["memory_bytes"]),
            f"{commands.index(row['command']) + 1}",
        ]
        for name, result in row["programs"].items()
        if "seconds_per_step" in result
    ]
