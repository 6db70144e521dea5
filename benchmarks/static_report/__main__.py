"""Resources of every kernel on a GPU and predicted time of every operation, computed without a GPU.

    python -m benchmarks.static_report [--target sm_90] [--json] [--out FILE]

It compiles the kernels (:mod:`dllm_kernels.offline`), bounds their occupancy (:mod:`.occupancy`) and predicts times
(:mod:`.prediction`), with which measurements are compared later.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks import machine, report
from benchmarks.static_report.occupancy import occupancy
from benchmarks.static_report.prediction import CALLS, CEILINGS, cases, predict
from dllm_kernels import _impl, _tuning_cache, offline


def kernels(target: str, named: str = "") -> list[dict[str, object]]:
    """A row for every kernel in every configuration of :mod:`dllm_kernels.offline`, with its occupancy."""
    rows = []
    for row in offline.compile_all(target, [named]):
        bound = occupancy(target, warps=row.warps, registers=row.registers, shared=row.shared)
        held = {"programs_per_multiprocessor": bound.programs, "warps_per_multiprocessor": bound.warps}
        rows.append(row._asdict() | held | {"bound_by": bound.bound})
    return rows


def predictions(target: str, ops: Iterable[str], **ceilings: float | None) -> list[dict[str, object]]:
    """The prediction for each of :func:`.prediction.cases` of these operations, with all instructions counted."""
    flops = ceilings.pop("flops_per_second", None)
    return [
        predict(
            **case,
            target=target,
            flops_per_second=None if case["dtype"] == "float32" else flops,
            compiled=True,
            **ceilings,
        )._asdict()
        for case in cases()
        if case["op"] in ops
    ]


def write(document: dict[str, object], path: Path) -> None:
    """Write the document as JSON with one line for each row."""
    parts = []
    for key, value in document.items():
        text = json.dumps(value)
        if isinstance(value, list):
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        parts.append(f" {json.dumps(key)}: {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def main(arguments: list[str] | None = None) -> int:
    """Compile, predict and print; exit status 1 where Triton cannot compile here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.static_report", description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=CEILINGS, default="sm_90")
    parser.add_argument(
        "--op", nargs="+", choices=CALLS, default=list(CALLS), help="operations to predict; default: all"
    )
    parser.add_argument("--named", default="", help="compile only configurations with this in their name")
    parser.add_argument("--bytes-per-second", type=float, help="measured bandwidth (4.2e12); default: data sheet")
    parser.add_argument("--flops-per-second", type=float, help="measured speed of half-precision products")
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON to this file")
    options = parser.parse_args(arguments)
    if missing := _impl.why_not_triton():
        parser.exit(1, f"{missing}\n")
    if _impl.interpreting():
        parser.exit(1, "TRITON_INTERPRET=1 turns kernels into Python functions: unset it to compile them\n")
    given = {"bytes_per_second": options.bytes_per_second, "flops_per_second": options.flops_per_second}
    document = {
        "kind": "prediction",
        "note": "computed, not measured: nothing in this file ran on a GPU",
        "formula": "seconds = sum over launches of max(bytes / bandwidth, flops / products, slots / instructions), "
        "of the multiprocessors that get a program",
        "target": options.target,
        "ceilings": CEILINGS[options.target]._asdict() | {"origin": "data sheet"},
        "instead_of_data_sheet": {name: value for name, value in given.items() if value},
        "command": " ".join(
            ["python -m benchmarks.static_report", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        "sources": _tuning_cache.fingerprint(machine.ROOT / "dllm_kernels"),
        "versions": {name: machine.versions()[name] for name in ("torch", "triton")},
        "kernels": kernels(options.target, options.named),
        "rows": predictions(options.target, options.op, **given),
    }
    if options.out:
        write(document, options.out)
    print(json.dumps(document)) if options.json else _print(document)
    return 0


def _print(document: dict[str, object]) -> None:
    target, gpu = document["target"], document["ceilings"]["gpu"]
    columns = ("kernel", "configuration", "registers", "spills", "shared", "matrix", "programs/SM", "warps/SM", "bound")
    keys = ("kernel", "configuration", "registers", "spills", "shared", "matrix")
    keys += ("programs_per_multiprocessor", "warps_per_multiprocessor", "bound_by")
    lines = [[str(row[key]) for key in keys] for row in document["kernels"]]
    report.print_table(f"Kernels compiled for {target}", columns, lines)
    columns = (
        "operation",
        "rows",
        "hidden",
        "vocab",
        "dtype",
        "T",
        "launches",
        "MB",
        "GFLOP",
        "Gslots",
        "predicted us",
    )
    lines = [_line(row) for row in document["rows"]]
    title = f"Predicted for {gpu}: bounds from below, nothing was timed"
    report.print_table(title, columns, lines, [document["formula"]])


def _line(row: dict[str, object]) -> list[str]:
    sizes = (str(row[key] or "") for key in ("rows", "hidden", "vocab", "dtype"))
    counts = (f"{row[key] / unit:.4g}" for key, unit in (("bytes", 1e6), ("flops", 1e9), ("slots", 1e9)))
    return [row["op"], *sizes, f"{row['temperature']:g}", str(row["launches"]), *counts, f"{row['seconds'] * 1e6:.3g}"]


if __name__ == "__main__":
    sys.exit(main())
