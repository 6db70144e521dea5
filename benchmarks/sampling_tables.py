"""Tables of sampling: speed against the authors' loops, parts of a step, block caches, accuracy by tokens per step."""

from __future__ import annotations

from pathlib import Path

from benchmarks import machine
from benchmarks.markdown import megabytes
from benchmarks.providers import is_approximate
from dllm.demo import samplers

SAMPLER_HEAD = (
    "model",
    "batch",
    "T",
    "machine",
    "card's loop, tokens/s",
    "dllm, tokens/s",
    "speed-up",
    "ms/step",
    "same tokens",
    "command",
)
STEPS_HEAD = (
    "sampler and model",
    "batch",
    "program",
    "ms/step",
    "body",
    "head",
    "choice",
    "rest",
    "tokens/s",
    "over the published loop (10-90 % of steps)",
    "over the loop without a cache",
    "same tokens",
    "command",
)
QUALITY_HEAD = ("asked", "tokens per step", "exact answers", "95 % interval", "tokens per forward", "command")
CACHED_HEAD = (
    "block caches",
    "machine",
    "forward passes",
    "before, s",
    "dllm's cache, s",
    "speed-up",
    "ms/step before",
    "dllm's",
    "cache, MB",
    "command",
)
# programs of a row of single steps
PROGRAMS = {"card": "published loop", "full-canvas": "LLaDA's loop, no cache", "ours-eager": "dllm"}
# pairs of loops of a cached_decoding row that are compared: without and with cache
CACHED_PAIRS = (("bd3lm recomputed", "bd3lm cached"), ("full canvas", "dual cache"))


def sampler_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """The lines of a case: the authors' loop against dllm's fastest program, and against its fastest approximate one
    where one was measured.

    Raises:
        ValueError: the row lacks one of the first two.
    """
    card, ours = card_and_ours(row)
    pairs = [("", ours)]
    if approximate := _fastest(row, approximate=True):
        pairs.append((", weights of 8 bits (approximate)", approximate))
    return [_sampler_line(row, how, card, program, commands) for how, program in pairs]


def _sampler_line(row: dict, how: str, card: dict, ours: dict, commands: list[str]) -> list[str]:
    settings, same = row["settings"], ours.get("same_tokens")
    return [
        sampler_and_model(settings) + how,
        str(settings["batch"]),
        f"{settings['temperature']:g}",
        machine.short_name(row["machine"]),
        *(f"{program['tokens_per_second']:.1f}" for program in (card, ours)),
        f"{ours['tokens_per_second'] / card['tokens_per_second']:.1f}x",
        f"{card['ms_per_step']['median']:.1f} -> {ours['ms_per_step']['median']:.1f}",
        "n/a" if same is None else f"{same:.1%}",
        f"{commands.index(row['command']) + 1}",
    ]


def steps_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for each program of a row whose single steps were timed, with the parts of its steps.

    Raises:
        ValueError: the row lacks the authors' loop or dllm's program.
    """
    settings = row["settings"]
    card_and_ours(row)
    return [
        [
            f"{sampler_and_model(settings)}, T {settings['temperature']:g}",
            str(settings["batch"]),
            PROGRAMS.get(name, name),
            f"{result['mean_ms_per_step']:.0f}",
            *(f"{ms:.0f}" if ms is not None else "" for ms in step_parts(result).values()),
            f"{result['tokens_per_second']:.2f}",
            speedup_of_steps(result) if name.startswith("ours") else "",
            f"{result['speedup_over_full_canvas']:.1f}x" if "speedup_over_full_canvas" in result else "",
            f"{result['same_tokens']:.1%}" if "same_tokens" in result else "",
            f"{commands.index(row['command']) + 1}",
        ]
        for name, result in row["providers"].items()
        if "mean_ms_per_step" in result
    ]


def step_parts(result: dict) -> dict[str, float | None]:
    """Milliseconds of body, head, choice of the tokens, and rest; head None where it is one operation with the choice.

    Example:
        >>> parts = {"body": 5.0, "head_sampling": 3.0, "transfer": 0.5, "rest": 0.1}
        >>> step_parts({"split_ms_per_step": parts, "head_ms_per_step": 2.0})
        {'body': 5.0, 'head': 2.0, 'choice': 1.0, 'rest': 0.6}
        >>> step_parts({"split_ms_per_step": parts, "head_ms_per_step": None})
        {'body': 5.0, 'head': None, 'choice': 3.0, 'rest': 0.6}
    """
    split, head = result["split_ms_per_step"], result["head_ms_per_step"]
    choice = split["head_sampling"] - (head or 0)
    return {"body": split["body"], "head": head, "choice": choice, "rest": split["transfer"] + split["rest"]}


def speedup_of_steps(result: dict) -> str:
    """The speed-up over the authors' loop, with the quantiles over steps where both take as many.

    Example:
        >>> speedup_of_steps({"speedup": 2.0, "speedup_of_steps": {"p10": 1.8, "p90": 2.25}})
        '2.0x (1.8-2.2)'
    """
    steps = result.get("speedup_of_steps")
    return f"{result['speedup']:.1f}x" + (f" ({steps['p10']:.1f}-{steps['p90']:.1f})" if steps else "")


def card_and_ours(row: dict) -> tuple[dict, dict]:
    """The results of the authors' loop and of dllm's fastest program with the weights in full, in a sampler row.

    Raises:
        ValueError: the row lacks one of the two.
    """
    card, ours = row.get("providers", {}).get("card", {}), _fastest(row, approximate=False)
    if ours is None or "tokens_per_second" not in card:
        raise ValueError(f"a chosen row has no measurement of both programs: {row['command']}")
    return card, ours


def _fastest(row: dict, approximate: bool) -> dict | None:
    """The result of dllm's fastest program among the approximate or the other ones; None where none was measured."""
    measured = [
        result
        for name, result in row.get("providers", {}).items()
        if name.startswith("ours") and is_approximate(name) == approximate and "tokens_per_second" in result
    ]
    return max(measured, key=lambda result: result["tokens_per_second"], default=None)


def sampler_and_model(settings: dict) -> str:
    """Model and dtype of a sampler row, with the sampler in front where it is not the model card's loop."""
    model = f"{Path(settings['model']).name} {settings['dtype']}"
    if settings.get("sampler", "generate") == "generate":
        return model
    return f"{sampler_in_words(settings['sampler'], settings['options'], settings['approximate'])}: {model}"


def sampler_in_words(sampler: str, options: dict, approximate: bool) -> str:
    """A sampler's name with its rule's setting, and "(approximate)" where it may give other tokens.

    Example:
        >>> sampler_in_words("threshold", {"threshold": 0.9}, True)
        'threshold 0.9 (approximate)'
        >>> sampler_in_words("llada2", {"threshold": 0.95}, True)
        'llada2 threshold 0.95 (approximate)'
    """
    rules = [name for name in samplers.RULES if name in options]
    values = [f"{options[name]:g}" if name == sampler else f"{name} {options[name]:g}" for name in rules]
    return " ".join([sampler, *values]) + " (approximate)" * approximate


def quality_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for each task and sampler setting of a quality row."""
    settings = row["settings"]
    what = "" if settings["model"] == "shipped" else f", {settings['model']}"
    if settings["block_length"] != settings["gen_length"]:
        what += f", blocks of {settings['block_length']}"
    return [
        [
            f"{result['questions']} {result['task']}{what}",
            way_to_sample(result),
            f"{result['accuracy']:.1%}",
            "{:.1%} to {:.1%}".format(*result["interval_95"]),
            f"{result['tokens_per_forward']:.2f}",
            f"{commands.index(row['command']) + 1}",
        ]
        for result in row["results"]
    ]


def way_to_sample(result: dict) -> str:
    """The sampler and setting of a quality result; for the model card's loop only the number of tokens per step.

    Example:
        >>> way_to_sample({"tokens_per_step": 8})
        '8'
        >>> way_to_sample({"sampler": "mdlm", "approximate": False, "tokens_per_step": 2})
        'mdlm, 2'
        >>> way_to_sample({"tokens_per_step": 8, "quantize": "int8"})
        '8, weights of int8 (approximate)'
        >>> way_to_sample({"tokens_per_step": 8, "compile_body": True})
        '8, compiled body'
    """
    counted = [str(result["tokens_per_step"])] if "tokens_per_step" in result else []
    if result.get("quantize", "none") != "none":
        counted.append(f"weights of {result['quantize']} (approximate)")
    if result.get("compile_body"):
        counted.append("compiled body")
    if result.get("sampler", "generate") == "generate":
        return ", ".join(counted)
    return ", ".join([sampler_in_words(result["sampler"], result, result["approximate"]), *counted])


def cached_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for each loop with a cache and the same loop without."""
    settings, loops = row["settings"], {result["loop"]: result for result in row["results"]}
    model = settings.get("model") or f"Llama shape, {settings['layers']} layers x {settings['hidden']}"
    what = f"{model} {settings['dtype']}, batch {settings['batch']}, {settings['prompt']} + {settings['new']} tokens"
    pairs = [(loops[before], loops[after]) for before, after in CACHED_PAIRS if before in loops and after in loops]
    return [
        [
            f"{before['loop']} -> {after['loop']}: {what} in blocks of {settings['block']}",
            machine.short_name(row["machine"]),
            f"{after['forwards']}",
            *(f"{loop['call_seconds']['median']:.2f}" for loop in (before, after)),
            f"{before['call_seconds']['median'] / after['call_seconds']['median']:.1f}x",
            *(f"{1000 * loop['step_seconds']['median']:.1f}" for loop in (before, after)),
            megabytes(after["cache_bytes"]),
            f"{commands.index(row['command']) + 1}",
        ]
        for before, after in pairs
    ]
