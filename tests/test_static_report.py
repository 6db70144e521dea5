"""The static report: what it counts is what the operations' own formulae say, and its file is named a prediction."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks import report
from benchmarks.kernels.cases import on_gpus
from benchmarks.static_report import __main__ as static_report
from benchmarks.static_report import disassembly, launches, prediction
from benchmarks.static_report.occupancy import occupancy
from dllm_kernels import _impl

pytestmark = pytest.mark.skipif(_impl.why_not_triton() is not None, reason=str(_impl.why_not_triton()))

predict = static_report.predict
H, V = 4096, 126464
HANDED_ON = 24  # bytes that a row's chunk or tile hands on, without noise


def test_one_read_of_the_logits():
    found = predict("gumbel_argmax", rows=1024, vocab=V)
    results = 1024 * (2 * 8 + 4 * 4)
    assert (found.bytes, found.flops, found.slots) == (1024 * V * 2 + results, 0, 0)
    assert found.l2_bytes == 2 * 1024 * -(-V // 16384) * HANDED_ON


def test_noise_costs_instructions_and_hardly_a_byte():
    cold, hot = (predict("gumbel_argmax", rows=64, vocab=V, temperature=t) for t in (0.0, 1.0))
    # 64 slots for a Philox block: one for 64 logits, and one for each of the 16 tokens that a row draws from
    assert hot.slots == 64 * (64 * V // 64 + 16 * 64)
    assert 0 < hot.bytes - cold.bytes <= 64 * (3 * 8 + 4) + 4


def test_few_rows_read_the_head_once_and_keep_their_logits():
    found = predict("linear_gumbel_argmax", rows=16, hidden=H, vocab=V)
    read = 2 * H * (V + 16)
    assert read <= found.bytes <= read * 1.001 and found.l2_bytes < 2 * 16 * V
    assert found.flops == 2 * 16 * H * V


def test_logits_of_few_rows_stay_in_cache():
    found = predict("linear_gumbel_argmax", rows=192, hidden=H, vocab=V)
    assert 2 * H * V <= found.bytes <= 2 * H * V * 1.01
    assert found.l2_bytes > 2 * 2 * 192 * V  # written and read


@pytest.mark.parametrize(("hidden", "vocab", "slices"), [(1024, 50368, 1), (H, V, 2)])
def test_many_rows_multiply_in_few_wide_slices(hidden, vocab, slices):
    found = predict("linear_gumbel_argmax", rows=1024, hidden=hidden, vocab=vocab)
    assert found.launches == 2 * slices + 1
    assert found.flops == 2 * 1024 * hidden * vocab
    moved = 2 * hidden * vocab + 2 * 2 * 1024 * vocab  # the weight, and logits written and read
    assert moved <= found.bytes <= moved * 1.05


def test_logits_in_slices_take_no_more_than_the_docstring_says():
    for rows in (33, 64, 192, 193, 1024, 4096):
        call = prediction.CALLS["linear_gumbel_argmax"][1](rows=rows, hidden=H, vocab=V, dtype=torch.bfloat16, noise={})
        chunks = [launch for launch in launches.record(call) if launch.name == "_chunk_kernel"]
        at_once = min(2**25 if rows <= 192 else 2**27, 2 * rows * V)
        assert at_once / 2 < max(launch.bytes + launch.l2_bytes for launch in chunks) <= at_once * 1.02


@pytest.mark.parametrize(("rows", "products"), [(32, 0), (33, 1), (64, 1)])
def test_the_head_is_fused_for_up_to_32_rows(rows, products):
    call = prediction.CALLS["linear_gumbel_argmax"][1](rows=rows, hidden=H, vocab=V, dtype=torch.bfloat16, noise={})
    names = [launch.name for launch in launches.record(call)]
    assert (names.count("mm"), names.count("_tile_kernel")) == (products, 1 - products)


@pytest.mark.parametrize(("rows", "chunks"), [(8192, 1), (12288, 3)])
def test_the_first_product_of_a_loss_writes_the_gradient_that_the_others_add_to(rows, chunks):
    call = prediction.CALLS["linear_cross_entropy"][1](rows=rows, hidden=H, vocab=V, dtype=torch.bfloat16, noise={})
    found = launches.record(call)
    names = [launch.name for launch in found if launch.flops]
    assert (names.count("mm"), names.count("addmm")) == (2 * chunks + 1, chunks - 1)
    filled = [launch.bytes for launch in found if launch.name.startswith(("zero", "new_zeros", "fill"))]
    assert max(filled, default=0) < 4 * H * V


@pytest.mark.parametrize("rows", [1024, 4096])
def test_the_loss_is_three_products(rows):
    found = predict("linear_cross_entropy", rows=rows, hidden=H, vocab=V)
    assert found.flops == 6 * rows * H * V
    assert found.seconds >= found.flops / 989e12


def test_the_loss_of_given_logits_reads_and_writes_them_once():
    found = predict("masked_cross_entropy", rows=1024, vocab=V)
    assert 2 * 2 * 1024 * V <= found.bytes <= 2 * 2 * 1024 * V * 1.001


@pytest.mark.parametrize("target, gigahertz", [("sm_80", 1.41), ("sm_90", 1.98), ("sm_100", 1.98)])
def test_issue_slots_are_four_warps_a_cycle(target, gigahertz):
    """Of clocks from NVIDIA's data sheets. An A100 has half as many lanes for float32, and issues as many warps."""
    ceilings = prediction.CEILINGS[target]
    assert ceilings.slots == pytest.approx(ceilings.multiprocessors * 128 * gigahertz * 1e9, rel=0.02)


def test_ceilings_are_arguments():
    case = dict(rows=1024, vocab=V, temperature=1.0)
    faster = predict("gumbel_argmax", **case, bytes_per_second=1e15, slots_per_second=1e15)
    assert faster.seconds < predict("gumbel_argmax", **case).seconds / 10


@pytest.mark.parametrize(
    "wrong",
    [
        dict(op="softmax", rows=1, vocab=8),
        dict(op="gumbel_argmax", rows=1),
        dict(op="gumbel_argmax", rows=1, hidden=4, vocab=8),
        dict(op="gumbel_argmax", rows=1, vocab=8, dtype="float64"),
    ],
)
def test_wrong_cases_are_refused(wrong):
    with pytest.raises(ValueError):
        predict(wrong.pop("op"), **wrong)


def test_a_device_gets_no_launch_for_checks_that_nobody_reads():
    """Weights and labels are checked where the host sees them; on a device that would be launches for nothing."""
    call = prediction.CALLS["masked_cross_entropy"][1](rows=64, vocab=V, dtype=torch.bfloat16, noise={})
    names = [launch.name for launch in launches.record(call)]
    assert names.count("_row_kernel") == 1 and "bitwise_and" not in names


@pytest.mark.parametrize(
    "needs, programs, bound",
    [
        (dict(warps=8, registers=255, shared=0), 1, "registers"),  # 2 warps of 8192 registers in each part
        (dict(warps=32, registers=32, shared=128), 2, "registers"),
        (dict(warps=32, registers=33, shared=128), 1, "registers"),  # in steps of 8
        (dict(warps=4, registers=24, shared=0), 16, "threads"),
        (dict(warps=1, registers=16, shared=0), 32, "programs"),
        (dict(warps=8, registers=64, shared=113 * 1024), 2, "shared memory"),  # 2 x (113 + 1) = 228 KiB
        (dict(warps=8, registers=64, shared=113 * 1024 + 1), 1, "shared memory"),
    ],
)
def test_occupancy(needs, programs, bound):
    assert occupancy("sm_90", **needs) == (programs, programs * needs["warps"], bound)


def command(*arguments, program="benchmarks.static_report"):
    clean = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    words = [sys.executable, "-m", program, *arguments]
    return subprocess.run(words, cwd=report.machine.ROOT, capture_output=True, text=True, env=clean, timeout=900)


def test_the_command(tmp_path):
    file = tmp_path / "predicted.json"
    short = ("--op", "position_noise", "--named", "noise of positions, gumbel", "--out", str(file))
    done = command(*short, "--bytes-per-second", "4e12")
    assert done.returncode == 0, done.stderr
    assert "nothing was timed" in done.stdout and "noise_kernel" in done.stdout
    document = json.loads(file.read_text())
    (kernel,) = document["kernels"]
    assert kernel["registers"] > 0 and kernel["spills"] == 0 and kernel["programs_per_multiprocessor"] >= 1
    assert document["instead_of_data_sheet"] == {"bytes_per_second": 4e12}
    first, last = document["rows"]
    # Philox's ten rounds alone are 64 instructions for each position, and all instructions are counted here
    assert (first["rows"], last["rows"]) == (512, 65536) and last["slots"] > 64 * 65536


def test_gumbel_argmax_keeps_to_its_instructions():
    """Per logit of 126464 in bfloat16 on sm_90, both kernels in all: memory is as fast as 15.5 at full rate."""
    done = command("--dtype", "bfloat16", "--json", program="benchmarks.static_report.instructions")
    assert done.returncode == 0, done.stderr
    greedy, sampled, cold = json.loads(done.stdout)
    assert (greedy["temperature"], sampled["temperature"], cold["temperature"]) == (0.0, 1.0, 0.7)
    assert 7 < greedy["per_pass"] < greedy["total"] <= 12
    assert 8 < sampled["per_pass"] < sampled["total"] <= 18.5
    assert 12 < cold["per_pass"] < cold["total"] <= 23


def test_setups_count_where_their_loop_runs():
    kernel = disassembly.count(
        """
        /*0000*/ MOV R1, R2 ;
        /*0010*/ @P0 BRA `(.L_x_1) ;
        /*0020*/ MOV R3, R4 ;
        .L_x_0:
        /*0030*/ IADD R1, R1, 1 ;
        /*0040*/ @P1 BRA `(.L_x_0) ;
        .L_x_1:
        /*0050*/ EXIT ;
        /*0060*/ NOP ;
        """
    )
    assert kernel == disassembly.Code(loops=(2,), setups=(1,), straight=3)


def test_the_command_under_the_interpreter(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as end:
        static_report.main(["--op", "position_noise"])
    assert end.value.code == 1 and "unset it" in capsys.readouterr().err


def test_the_stored_prediction_covers_the_cases_and_looks_like_no_measurement():
    document = json.loads((report.RESULTS / "predicted-sm_90.json").read_text())
    assert document["kind"] == "prediction" and "not measured" in document["note"] and "date" not in document
    keys = ("op", "rows", "hidden", "vocab", "dtype", "temperature")
    stored = [tuple(row[key] for key in keys) for row in document["rows"]]
    assert len(set(stored)) == len(stored)
    wanted = {tuple({"hidden": None, "vocab": None, "temperature": 0.0, **case}[key] for key in keys) for case in CASES}
    assert wanted == set(stored)
    assert all(row["seconds"] >= row["bytes"] / document["ceilings"]["bytes"] for row in document["rows"])
    assert all(not row["spills"] for row in document["kernels"])


def test_whatever_the_gpu_report_measures_is_predicted():
    names = ("op", "rows", "hidden", "vocab", "dtype", "temperature")
    nothing = dict.fromkeys(names) | {"temperature": 0.0}
    predicted = {tuple((nothing | case)[name] for name in names) for case in CASES}
    assert {case.key for case in on_gpus()} <= predicted


CASES = list(prediction.cases())
