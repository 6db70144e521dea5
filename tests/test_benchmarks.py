"""Tests of the benchmark programs on tiny models: their output, their errors, and what they measure."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from benchmarks import (
    card_loop,
    cpu_cross_entropy,
    cpu_experts,
    cpu_head,
    cpu_kernels,
    families,
    kernel_tables,
    losses,
    machine,
    measure,
    model_card,
    models,
    providers,
    quality,
    report,
    sampler_throughput,
    sampling_tables,
    table,
    timing,
    training_step,
    training_tables,
)
from benchmarks.loops import COMPARED
from benchmarks.plot import __main__ as plot_command
from benchmarks.plot import published
from dllm.demo import samplers
from dllm.demo.shipped import SHIPPED
from dllm.fast.compiled import body
from dllm.models.bidirectional import causal
from dllm.models.experts import moe
from dllm_kernels.testing import assert_model_no_worse
from tests import programs
from tests.causal_models import causal_model
from tests.models import MASK_ID, make_prompt, tiny

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
SHORT = ["--prompt-length", "6", "--gen-length", "8", "--block-length", "4", "--steps", "8", "--repeats", "2"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A tiny BERT saved to a folder whose config names the mask token."""
    path = tmp_path_factory.mktemp("models") / "tiny-bert"
    model = tiny("bert")
    model.config.mask_token_id = MASK_ID
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory) -> str:
    """A tiny Llama saved to a folder in the same way."""
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    model = causal(copy.deepcopy(causal_model()))
    model.set_output_embeddings(nn.Linear(32, 97, bias=False))  # a bias would not be saved
    model.config.mask_token_id, model.config.eos_token_id = MASK_ID, None
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(autouse=True)
def quick_bandwidth(monkeypatch):
    monkeypatch.setattr(machine, "bandwidth", lambda device: {"read": 1e9, "copy": 1e9})


@pytest.fixture
def run(folder, tmp_path, capsys):
    """Run sampler_throughput on the tiny folder; returns exit status, last line, rows and everything printed."""

    def call(*arguments: str, model: str = folder):
        out = tmp_path / "rows"
        status = sampler_throughput.main(["--model", model, "--device", "cpu", "--out", str(out), *SHORT, *arguments])
        printed = capsys.readouterr()
        last = json.loads(printed.out.strip().splitlines()[-1])
        rows = [json.loads(Path(case["row"]).read_text()) for case in last["cases"]]
        return status, last, rows, printed

    return call


class TestSamplerThroughput:
    def test_measures_both_programs(self, run, tmp_path):
        plot = tmp_path / "plots" / "steps.png"
        status, last, rows, printed = run("--temperature", "0", "1", "--check-noise", "--plot", str(plot))
        assert status == 0
        assert plot.read_bytes().startswith(b"\x89PNG")
        assert len(rows) == 2
        for case, row in zip(last["cases"], rows, strict=True):
            assert row["kind"] == "sampler"
            assert row["machine"]["cores"] >= 1
            assert row["versions"]["torch"]
            assert row["command"].startswith("python benchmarks/sampler_throughput.py --model")
            assert "--out" not in row["command"] and str(tmp_path) not in row["command"]
            for name in ("card", "ours-eager"):
                result = row["providers"][name]
                assert result["seconds"]["runs"] == 2
                assert result["seconds"]["p10"] <= result["seconds"]["median"] <= result["seconds"]["p90"]
                assert result["useful_tokens"] == 8  # this model has no EOS token
                assert set(result["split_ms_per_step"]) == {"body", "head_sampling", "transfer"}
                assert all(part > 0 for part in result["split_ms_per_step"].values())
                assert result["peak_bytes"] is None or result["peak_bytes"] >= 0
                assert case[name]["tokens_per_second"] == result["tokens_per_second"] > 0
            assert row["providers"]["ours-eager"]["same_tokens"] == 1
        assert "ours-eager" in printed.out

    def test_different_noise_is_not_compared(self, run):
        _, _, (row,), printed = run("--temperature", "1")
        assert "same_tokens" not in row["providers"]["ours-eager"]
        assert "--check-noise" in printed.out

    def test_failing_judge_says_why(self, run, monkeypatch):
        def fail(*arguments):
            raise RuntimeError("no judge today")

        monkeypatch.setattr(providers, "philox_check", fail)
        _, _, (row,), _ = run("--temperature", "1", "--check-noise")
        assert "no judge today" in row["providers"]["ours-eager"]["same_tokens_why_not"]

    def test_failing_provider_says_why(self, run):
        status, last, (row,), printed = run("--providers", "ours-eager", "ours-graph")
        assert status == 0
        assert "CUDA" in row["providers"]["ours-graph"]["error"]
        assert "CUDA" in printed.out
        assert "error" in last["cases"][0]["ours-graph"]
        assert row["providers"]["ours-eager"]["same_tokens_why_not"] == "the card's loop was not run"

    def test_weights_of_8_bits(self, run):
        _, _, (row,), _ = run("--providers", "card", "ours-eager", "ours-int8")
        result = row["providers"]["ours-int8"]
        assert 0 <= result["same_tokens"] <= 1 and result["seconds"]["runs"] == 2
        result["tokens_per_second"] = 1e6  # the fastest, and yet not what the exact program is called
        exact, approximate = sampling_tables.sampler_lines(row, [row["command"]])
        assert approximate[5] == "1000000.0" != exact[5]
        assert "approximate" in approximate[0] and "approximate" not in exact[0]

    def test_guidance_and_batch(self, run):
        _, _, (row,), _ = run("--batch", "3", "--cfg-scale", "0.5")
        assert row["providers"]["ours-eager"]["same_tokens"] == 1
        assert row["providers"]["ours-eager"]["useful_tokens"] == 24

    @pytest.mark.parametrize(
        ("cached", "temperature"),
        [
            (False, 1.0),
            (True, 0.0),
            pytest.param(False, 0.0, marks=pytest.mark.exhaustive),
            pytest.param(True, 1.0, marks=pytest.mark.exhaustive),
        ],
    )
    def test_every_other_sampler_against_its_authors_loop(
        self, run, folder, llama_folder, cached, temperature, tmp_path
    ):
        others = [name for name in COMPARED if name != "generate"]
        names = [name for name in others if samplers.keeps_cache(name) == cached or name == "mdlm"]
        plot = tmp_path / "steps.png"
        rules = ["--threshold", "0.1", "--factor", "1.9", *([] if cached else ["--gamma", "2.5"])]
        arguments = ["--sampler", *names, *rules, "--temperature", str(temperature), "--batch", "2", "--check-noise"]
        arguments += ["--repeats", "1"]
        model = llama_folder if cached else folder
        status, last, rows, printed = run(*arguments, "--plot", str(plot), model=model)
        assert status == 0 and plot.read_bytes().startswith(b"\x89PNG")
        assert [row["settings"]["sampler"] for row in rows] == names
        for name, case, row in zip(names, last["cases"], rows, strict=True):
            approximate = samplers.keeps_cache(name) or name in ("threshold", "factor", "llada2", "entropy-bound")
            assert case["approximate"] == row["settings"]["approximate"] == approximate
            assert (f"{name} (approximate), " in printed.out) == approximate
            assert ("-approximate-" in case["row"]) == approximate
            theirs, ours = row["providers"]["card"], row["providers"]["ours-eager"]
            assert ours["same_tokens"] == 1
            assert theirs["tokens_per_forward"] == 8 / theirs["forwards"]
            assert case["ours-eager"]["tokens_per_forward"] == ours["tokens_per_forward"] >= 1
            if not approximate:
                assert theirs["forwards"] == 8
            median = ours["seconds"]["median"]
            assert ours["ms_per_step"]["median"] == pytest.approx(1000 * median / ours["forwards"])

    def test_samplers_take_the_options_that_they_have(self):
        arguments = ["--sampler", "mdlm", "dream-entropy", "threshold", "--top-k", "9", "--steps", "32"]
        mdlm, dream, threshold = sampler_throughput.cases_of(sampler_throughput.parse(arguments))
        assert (mdlm.steps, mdlm.remasking, mdlm.options) == (32, "low_confidence", {})
        assert (dream.steps, dream.remasking, dream.block_length) == (32, None, dream.gen_length)
        assert dream.options == {"alg_temp": 0.0, "top_p": None, "top_k": 9}
        assert (threshold.steps, threshold.options) == (None, {"threshold": 0.9})
        assert "32 steps" in mdlm.details and "as many steps as it takes" in threshold.details

    @pytest.mark.parametrize(
        ("arguments", "option"),
        [(["--threshold", "0.9"], "--threshold"), (["--sampler", "factor", "--steps", "8"], "--steps")],
    )
    def test_options_of_no_sampler_end_the_program(self, arguments, option, capsys):
        with pytest.raises(SystemExit) as end:
            sampler_throughput.main(arguments)
        assert end.value.code == 2
        assert f"{option} is no option of" in capsys.readouterr().err

    def test_used_up_budget_is_said(self, run):
        status, _, rows, _ = run("--temperature", "0", "1", "--budget", "1e-9")
        assert status == 1
        assert all("budget" in row["error"] for row in rows)

    def test_unknown_model(self, run):
        status, last, _, printed = run(model="no-such-model")
        assert status == 1
        assert "modernbert-base" in last["cases"][0]["error"]
        assert "no-such-model" in printed.err

    def test_model_that_does_not_fit(self, run, monkeypatch):
        monkeypatch.setattr(machine, "free_memory", lambda device: 10**9)
        _, last, _, _ = run(model="llada-8b")
        assert "bytes" in last["cases"][0]["error"]
        assert "1,000,000,000 are free" in last["cases"][0]["error"]

    @pytest.mark.parametrize(
        "wrong",
        [
            ["--stepz", "8"],
            ["--step", "8"],
            ["--repeats", "0"],
            ["--threads", "-1"],
            ["--budget", "0"],
            ["--providers", "x"],
            ["--device", "no-such-device"],
            ["--out", "/dev/null/folder"],
        ],
    )
    def test_wrong_options_end_the_program(self, wrong, capsys):
        with pytest.raises(SystemExit) as end:
            sampler_throughput.main(wrong)
        assert end.value.code == 2
        assert "error:" in capsys.readouterr().err

    def test_negative_temperature(self, capsys):
        assert sampler_throughput.main(["--temperature", "-1"]) == 2
        assert "temperature" in capsys.readouterr().err

    def test_lengths_that_do_not_divide(self, capsys):
        assert sampler_throughput.main(["--gen-length", "9", "--block-length", "4"]) == 2
        assert "multiple of block_length" in capsys.readouterr().err

    def test_runs_as_a_file(self):
        done = programs.run(ROOT / "benchmarks" / "sampler_throughput.py", "--help", cwd=Path("/"))
        assert done.returncode == 0 and "--cfg-scale" in done.stdout


class TestMeasuredSteps:
    """Single steps in place of whole runs, of tiny models in float32."""

    LONG = ("--gen-length", "16", "--measured-steps", "2", "--batch", "2")

    @pytest.mark.parametrize(
        "sampler",
        [
            ("dream-entropy", "--temperature", "0.2", "--top-p", "0.95", "--steps", "16", "--check-noise"),
            ("llada", "--block-length", "8", "--steps", "16"),
        ],
    )
    def test_both_programs_take_the_same_steps(self, run, llama_folder, sampler):
        _, last, (row,), _ = run("--sampler", *sampler, *self.LONG, model=llama_folder)
        assert row["kind"] == "sampler_steps" and row["load_average"] >= 0
        assert row["timed_run"]["steps"] == 2 and row["settings"]["measured_steps"] == 2
        assert row["timed_run"]["prompt_length"] + row["timed_run"]["gen_length"] == 6 + 16
        theirs, ours = (row["providers"][name] for name in ("card", "ours-eager"))
        assert ours["same_tokens"] == 1
        assert ours["speedup"] == pytest.approx(ours["tokens_per_second"] / theirs["tokens_per_second"])
        assert ours["speedup_of_steps"]["runs"] == 4  # two steps, twice
        assert theirs["head_ms_per_step"] > 0 and ours["head_ms_per_step"] is None
        assert ours["product_ms"] > 0 and ours["setup_ms"] > 0
        for result in (theirs, ours):
            assert result["forwards"] == 2 and result["ms_per_step"]["runs"] == 4
            assert result["tokens_per_second"] == pytest.approx(2 * 1000 / result["mean_ms_per_step"])
            assert sum(result["split_ms_per_step"].values()) >= 0.999 * result["mean_ms_per_step"]
        assert last["cases"][0]["ours-eager"]["split_ms_per_step"] == ours["split_ms_per_step"]

    def test_a_cache_against_its_authors_loop_and_the_full_canvas(self, run, llama_folder):
        programs = ("--providers", "card", "full-canvas", "ours-eager")
        sampler = ("--sampler", "fast-dllm-dual", "llada", "--block-length", "8", "--threshold", "0.9")
        _, _, (row, without_cache), _ = run(*sampler, *programs, *self.LONG, model=llama_folder)
        theirs, full, ours = (row["providers"][name] for name in ("card", "full-canvas", "ours-eager"))
        assert (theirs["forwards"], full["forwards"], ours["forwards"]) == (8, 2, 8)  # a whole block, a token a step
        assert theirs["tokens_per_forward"] == full["tokens_per_forward"] == ours["tokens_per_forward"] == 1
        assert ours["same_tokens"] == 1 and "same_tokens" not in full
        times = ours["tokens_per_second"] / full["tokens_per_second"]
        assert ours["speedup_over_full_canvas"] == pytest.approx(times)
        error = without_cache["providers"]["full-canvas"]["error"]
        assert "full-canvas is for the samplers of Fast-dLLM" in error

    def test_as_many_masks_as_in_the_whole_run(self):
        shape = {"model": "minilm", "dtype": "float32", "device": "cpu", "prompt_length": 64, "gen_length": 256}
        for sampler, block in (("dream-entropy", 256), ("llada", 32)):
            case = providers.Case(**shape, sampler=sampler, block_length=block, steps=256, measured_steps=8)
            timed = case.measured
            masks = [timed.gen_length * (8 - step) / 8 for step in range(8)]
            assert sum(masks) / 8 == pytest.approx((block + 1) / 2, rel=0.02)
            assert timed.prompt_length + timed.gen_length == 320 and timed.measured is timed
        ruled = dataclasses.replace(case, sampler="threshold", steps=None).measured
        assert (ruled.prompt_length, ruled.gen_length, ruled.steps) == (288, 32, None)

    def test_the_table_and_the_plot_show_the_parts(self, run, llama_folder, tmp_path):
        arguments = ("--sampler", "llada", "--steps", "16", *self.LONG)
        _, _, (row,), _ = run(*arguments, model=llama_folder)
        text = table.table([row])
        assert "| llada: tiny-llama float32, T 0 | 2 | published loop |" in text
        assert "| llada: tiny-llama float32, T 0 | 2 | dllm |" in text
        theirs, ours = published.step_points([row])
        assert list(theirs["ms"]) == ["body", "head", "choice", "rest"]
        assert list(ours["ms"]) == ["body", "head and choice", "rest"]
        drawn = published.write("steps.svg", [theirs, ours], tmp_path).read_text()
        assert "published loop" in drawn and "head and choice" in drawn

    def test_the_families_cases(self):
        """benchmarks/families.py: the published settings, each at both batch sizes."""
        parsed = [
            sampler_throughput.parse([*case.split(), *families.SHARED.split(), "--repeats", "1"])
            for case in families.CASES
        ]
        cases = [case for options in parsed for case in sampler_throughput.cases_of(options)]
        assert [case.batch for case in cases] == [1, 4] * 3
        assert {(case.dtype, case.prompt_length, case.gen_length, case.measured_steps) for case in cases} == {
            ("bfloat16", 64, 256, 6)
        }
        dream, llada, dual = cases[::2]
        assert (dream.sampler, dream.temperature, dream.options["top_p"]) == ("dream-entropy", 0.2, 0.95)
        assert (llada.sampler, llada.temperature, llada.remasking) == ("llada", 0, "low_confidence")
        assert dual.options == {"threshold": 0.9} and dual.steps is None
        assert {case.measured.prompt_length + case.measured.gen_length for case in cases} == {320}

    def test_the_two_bodies_are_of_one_size(self):
        sizes = []
        for name in ("dream-0.5b", "llada-0.5b"):
            preset = models.PRESETS[name]
            with torch.device("meta"):
                model = getattr(transformers, preset.model_class)(
                    getattr(transformers, preset.config_class)(**preset.settings)
                )
            assert model.lm_head.weight is not model.get_input_embeddings().weight
            sizes.append(sum(p.numel() for name, p in model.model.layers.named_parameters() if name.endswith("weight")))
        assert sizes[0] == sizes[1]

    @pytest.mark.parametrize(
        ("wrong", "rule"),
        [
            (["--measured-steps", "0"], "--measured-steps must be above 0, got 0"),
            (["--measured-steps", "2", "--providers", "ours-graph"], "--measured-steps is for the providers"),
        ],
    )
    def test_wrong_options_end_the_program(self, wrong, rule, capsys):
        with pytest.raises(SystemExit) as end:
            sampler_throughput.main(wrong)
        assert end.value.code == 2
        assert rule in capsys.readouterr().err


class TestCardLoop:
    def test_same_seed_same_tokens(self):
        model = tiny("modernbert")
        prompt = make_prompt(model, batch=2, length=5)

        def canvas(seed: int) -> torch.Tensor:
            torch.manual_seed(seed)
            return card_loop.generate(model, prompt, 4, 8, 4, temperature=1.0, remasking="random", mask_id=MASK_ID)

        assert torch.equal(canvas(1), canvas(1))
        assert not torch.equal(canvas(1), canvas(2))
        assert torch.equal(canvas(1)[:, :5], prompt)
        assert not (canvas(1) == MASK_ID).any()

    @pytest.mark.parametrize("remasking", ["low_confidence", "random"])
    def test_on_our_noise_gives_our_tokens(self, remasking):
        from dllm.fast import generate

        model = tiny("bert")
        prompt = make_prompt(model, batch=3, length=5)
        case = providers.Case("tiny", "float32", "cpu", 3, 5, 12, 6, 8, temperature=0.7, remasking=remasking, seed=11)
        judge = providers.philox_check(models.Loaded("tiny", model, MASK_ID), case, prompt)
        assert torch.equal(judge, generate(model, prompt, **case.loop_arguments(), mask_id=MASK_ID, seed=11))

    def test_bad_input(self):
        model = tiny("bert")
        with pytest.raises(ValueError, match="remasking"):
            card_loop.generate(model, make_prompt(model, 1, 4), remasking="none", mask_id=MASK_ID)
        with pytest.raises(ValueError, match="divide"):
            card_loop.generate(model, make_prompt(model, 1, 4), steps=3, gen_length=8, block_length=4, mask_id=MASK_ID)


class TestModels:
    @pytest.mark.parametrize("name", ["llada-8b", "dream-7b"])
    def test_decoders_see_both_sides(self, name, monkeypatch):
        small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        small |= {"num_attention_heads": 4, "num_key_value_heads": 2}
        preset = models.PRESETS[name]
        monkeypatch.setitem(
            models.PRESETS,
            name,
            models.Preset(preset.model_class, preset.config_class, 3, preset.settings | small),
        )
        model = models.load(name, torch.float32, CPU).model
        tokens = make_prompt(model, 1, 8)
        changed = tokens.clone()
        changed[0, -1] = (tokens[0, -1] + 1) % 64
        assert not torch.equal(model(tokens).logits[0, 0], model(changed).logits[0, 0])

    def test_decoders_of_transformers_4_are_refused(self, monkeypatch):
        """They stay causal there, and a benchmark of them would measure another model."""
        monkeypatch.setattr(models.transformers, "__version__", "4.57.6")  # whichever object was first imported
        with pytest.raises(ValueError, match="bidirectional from transformers 5 on, got"):
            models.load("llada-8b", torch.float32, CPU)

    def test_weights_are_seeded_and_of_the_dtype(self):
        once, again, other = (models.load("minilm", torch.bfloat16, CPU, seed=seed).model for seed in (1, 1, 2))
        weights = [model.get_output_embeddings().weight for model in (once, again, other)]
        assert weights[0].dtype == torch.bfloat16
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    def test_folder_without_a_mask_token(self, tmp_path):
        tiny("bert").save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="--mask-id"):
            models.load(str(tmp_path), torch.float32, CPU)
        assert models.load(str(tmp_path), torch.float32, CPU, mask_id=7).mask_id == 7

    def test_folder_of_another_kind(self, tmp_path):
        transformers.GPT2Config(n_layer=1).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="gpt2"):
            models.load(str(tmp_path), torch.float32, CPU)

    def test_prompts_hold_no_mask(self):
        loaded = models.Loaded("tiny", tiny("bert"), MASK_ID)
        case = providers.Case("tiny", "float32", "cpu", batch=4, prompt_length=500)
        prompt = measure.random_prompt(loaded, case)
        assert prompt.shape == (4, 500)
        assert not (prompt == MASK_ID).any()
        assert prompt.max() == loaded.vocab_size - 1


class TestTiming:
    def test_providers_take_turns(self):
        order = []
        calls = {name: lambda name=name: order.append(name) or 1.0 for name in "abc"}
        assert timing.interleave(calls, repeats=3) == {"a": [1.0] * 3, "b": [1.0] * 3, "c": [1.0] * 3}
        assert "".join(order) == "abcbcacab"

    def test_deadline_leaves_one_round(self):
        assert timing.interleave({"a": lambda: 1.0, "b": lambda: None}, repeats=3, deadline=0.0) == {"a": [1.0]}

    def test_no_providers(self):
        assert timing.interleave({}, repeats=2) == {}

    def test_stopwatch_adds_up_parts(self):
        watch = timing.Stopwatch(CPU)
        for part in ("body", "head", "body"):
            watch.mark(part)
        seconds = watch.seconds()
        assert list(seconds) == ["body", "head"]
        assert all(value >= 0 for value in seconds.values())

    def test_peak_memory_sees_what_is_freed_again(self):
        with timing.PeakMemory(CPU) as memory:
            torch.ones(2**24)
        if memory.bytes is None:
            pytest.skip(memory.how)
        assert 0.9 * 2**26 < memory.bytes < 2 * 2**26

    def test_useful_tokens_end_with_the_first_eos(self):
        answers = torch.tensor([[5, 2, 6], [5, 6, 7], [2, 2, 2]])
        assert measure.useful_tokens(answers, eos_id=2) == 6
        assert measure.useful_tokens(answers, eos_id=None) == 9


class TestKernelBenchmarks:
    def test_cpu_kernels(self, tmp_path, capsys):
        arguments = ["--rows", "2", "--vocab", "300000", "--impl", "reference", "--repeats", "1", "--dtype", "float32"]
        assert cpu_kernels.main([*arguments, "--out", str(tmp_path)]) == 0
        last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        row = json.loads(Path(last["row"]).read_text())
        assert [result["temperature"] for result in row["results"]] == [0.0, 1.0]
        assert all(result["speedup"] > 0 and result["bytes"] == 2_400_000 for result in row["results"])

    def test_cpu_head(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(cpu_head.HEADS, "minilm", (8, 3000))
        arguments = ["--head", "minilm", "--rows", "16", "--repeats", "1", "--dtype", "float32"]
        assert cpu_head.main([*arguments, "--out", str(tmp_path)]) == 0
        last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        (result,) = json.loads(Path(last["row"]).read_text())["results"]
        assert result["equal_tokens"] == 1 and min(result["speedup"].values()) > 0

    def test_cpu_head_with_the_expected_embedding(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(cpu_head.TIED_HEADS, "tied-32768", (8, 3000))
        arguments = ["--operation", "embedding", "--head", "tied-32768", "--rows", "16", "--repeats", "1"]
        assert cpu_head.main([*arguments, "--dtype", "float32", "--out", str(tmp_path)]) == 0
        last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        row = json.loads(Path(last["row"]).read_text())
        assert row["results"][0]["equal_tokens"] == 1 and row["settings"]["temperature"] == 0.6

    def test_cpu_cross_entropy(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(cpu_cross_entropy.HEADS, "minilm", (8, 50))
        arguments = ["--head", "minilm", "--dtype", "float32", "--rows", "12", "--masked", "5", "--repeats", "1"]
        assert cpu_cross_entropy.main([*arguments, "--out", str(tmp_path)]) == 0
        last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        row = json.loads(Path(last["row"]).read_text())
        assert {"full", "gathered", "ours"} <= {result["program"] for result in row["results"]}
        assert training_tables.entropy_lines(row, [row["command"]])[0][0] == "minilm float32, 5 masked of 12 rows"

    def test_the_programs_compute_the_same_loss(self, monkeypatch):
        monkeypatch.setitem(cpu_cross_entropy.HEADS, "minilm", (8, 50))
        options = cpu_cross_entropy.parse(["--rows", "12", "--masked", "5"])
        batch = cpu_cross_entropy.make_batch(options, "minilm", torch.float32)
        losses = [cpu_cross_entropy.programs(options)[name](batch).item() for name in ("full", "gathered", "ours")]
        assert losses == pytest.approx([losses[0]] * 3, rel=1e-5) and losses[0] > 0

    @pytest.mark.skipif(moe is None, reason="experts of transformers 4 are modules of their own")
    def test_cpu_experts(self, tmp_path, capsys):
        small = ["--tokens", "3", "5", "--experts", "4", "--chosen", "2", "--width", "16", "--inner", "8"]
        arguments = [*small, "--dtype", "float32", "--repeats", "1", "--out", str(tmp_path)]
        assert cpu_experts.main(arguments) == 0
        row = json.loads(Path(json.loads(capsys.readouterr().out.splitlines()[-1])["row"]).read_text())
        lines = kernel_tables.experts_lines(row, [row["command"]])
        assert [line[0] for line in lines] == [f"2 of 4, 16 x 8, float32, {tokens} tokens" for tokens in (3, 5)]
        assert all(result["floor_seconds"] > 0 and result["ours_is_faster_by"] > 0 for result in row["results"])

    @pytest.mark.skipif(moe is None, reason="experts of transformers 4 are modules of their own")
    def test_implementations_of_experts_compute_the_same(self):
        options = cpu_experts.parse(["--experts", "4", "--chosen", "2", "--width", "16", "--inner", "8"])
        layers, case = cpu_experts.make_layers(options, torch.float32), cpu_experts.make_case(options, 5, torch.float32)
        with torch.inference_mode():
            results = {name: program(case) for name, program in cpu_experts.programs(layers).items()}
        for name in ("grouped_mm", "ours"):
            torch.testing.assert_close(results[name], results["eager"])
        close, exact = results["int8"][0], results["eager"][0]
        assert 0 < (close - exact).norm() / exact.norm() < 0.05  # of 16 columns; 2 % of many
        assert results["ours"][0].abs().max() > 0 and not torch.equal(results["ours"][0], results["ours"][1])

    def test_pytest_finds_the_cases(self):
        call = [
            sys.executable,
            "-m",
            "pytest",
            "benchmarks/kernels",
            "-q",
            "--benchmark-disable",
            "-k",
            "cpu-1-32-eager",
        ]
        run = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
        assert "1 passed" in run.stdout


class TestTrainingStep:
    EAGER = ("full", "indexed", "patched", "ours")
    SHORT = ("--device", "cpu", "--batch", "3", "--length", "20", "--repeats", "2", "--providers", *EAGER)

    @pytest.fixture
    def run(self, folder, tmp_path, capsys, monkeypatch):
        """Run training_step on the tiny folder; returns exit status, row and everything printed.

        Memory is measured in a separate process, which takes seconds, so most tests get a fixed result instead.
        """

        def call(*arguments: str, memory: bool = False):
            if not memory:
                peaks = {name: {"peak_bytes": 10**6, "peak_how": "before"} for name in losses.PROGRAMS}
                monkeypatch.setattr(training_step, "memory_elsewhere", lambda arguments: peaks)
            status = training_step.main(["--model", folder, "--out", str(tmp_path / "rows"), *self.SHORT, *arguments])
            printed = capsys.readouterr()
            last = json.loads(printed.out.strip().splitlines()[-1])
            row = json.loads(Path(last["row"]).read_text())
            assert last["providers"] == row["providers"]
            return status, row, printed

        return call

    @pytest.fixture
    def step(self, folder):
        """A step without dropout, and a batch for it."""
        options = training_step.parse(["--model", folder, *self.SHORT, "--no-dropout"])
        loaded = training_step.load(options)
        (batch,) = losses.make_batches(loaded, 3, 20, count=1, seed=0)
        return training_step.Step(loaded.model, CPU, "float32", seed=0), batch

    @pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.exhaustive)])
    def test_measures_every_program(self, run, dtype):
        status, row, printed = run("--dtype", dtype, memory=True)
        assert status == 0
        assert row["kind"] == "training_step"
        assert row["command"].startswith("python benchmarks/training_step.py --model")
        assert row["settings"]["attention"] == "eager"
        assert row["settings"]["dropout"] == 0.1
        assert 0.4 < row["masked_share"] < 0.6
        assert row["flops"]["head_of_all_rows"] == 6 * 32 * 131 * 60
        assert row["flops"]["head_of_masked_rows"] == 6 * 32 * 131 * round(60 * row["masked_share"], 6)
        assert set(row["providers"]) == {"full", "indexed", "patched", "ours"}
        for name, result in row["providers"].items():
            assert result["seconds"]["runs"] == 2
            assert result["tokens_per_second"] == pytest.approx(60 / result["seconds"]["median"])
            assert all(seconds > 0 for seconds in result["split_seconds"].values())
            assert result["peak_bytes"] is None or result["peak_bytes"] >= 0
            truth = row["losses"]["truths"][name]
            assert abs(row["losses"]["programs"][name] - truth["loss"]) <= truth["tolerance"]
            assert name in printed.out
        ours, full = row["providers"]["ours"], row["providers"]["full"]
        assert ours["against"] == "full" and "against" not in full
        assert ours["speedup"] == ours["tokens_per_second"] / full["tokens_per_second"]

    def test_stands_in_the_readme(self, run):
        _, row, _ = run("--attention", "sdpa", "--no-dropout")
        _, line = training_tables.training_lines(row, ["another command", row["command"]])
        assert line[:2] == [
            "tiny-bert float32, sdpa attention, dropout 0",
            f"3 x 20, {row['masked_share']:.0%} masked",
        ]
        assert line[3] == "full logits -> MDLMTrainer's loss"
        assert line[6] == f"{row['providers']['ours']['speedup']:.2f}x"
        assert line[-1] == "2"
        assert " | ".join(line[:-1]) in table.table([row])

    def test_patched_against_unpatched_with_checkpointing(self, run):
        status, row, printed = run("--providers", "indexed", "patched", "--gradient-checkpointing")
        assert status == 0 and row["settings"]["gradient_checkpointing"]
        assert "gradient checkpointing" in printed.out and row["providers"]["patched"]["against"] == "indexed"
        (line,) = training_tables.training_lines(row, [row["command"]])
        assert line[0].endswith("gradient checkpointing") and line[3] == "logits[mask] -> the same, patched"

    def test_row_without_a_pair(self, run):
        _, row, _ = run("--providers", "ours")
        assert "speedup" not in row["providers"]["ours"]
        with pytest.raises(ValueError, match="both"):
            table.table([row])

    def test_another_loss_is_not_timed(self, folder, tmp_path, monkeypatch, capsys):
        off = losses.Program(lambda model, batch: losses.full(model, batch) * (1 + 1e-5), against="full")
        monkeypatch.setitem(losses.PROGRAMS, "ours", off)
        assert training_step.main(["--model", folder, "--out", str(tmp_path), *self.SHORT]) == 1
        assert "ours must give the loss" in capsys.readouterr().err
        assert not list(tmp_path.glob("*.json"))

    @pytest.mark.parametrize("good_calls", [0, 1, 3])
    def test_failing_program_says_why(self, run, monkeypatch, good_calls):
        """A program fails at the check of the loss, in its warm-up, or in the second counted step."""
        calls = []

        def fails_later(model: torch.nn.Module, batch: losses.Batch) -> torch.Tensor:
            calls.append(batch)
            if len(calls) > good_calls:
                raise MemoryError("no room")
            return losses.full(model, batch)

        monkeypatch.setitem(losses.PROGRAMS, "full", losses.Program(fails_later))
        status, row, printed = run("--providers", "full", "ours")
        assert status == 0
        assert row["providers"]["full"]["error"] == "MemoryError: no room"
        assert "seconds" not in row["providers"]["full"]
        assert "no room" in printed.out
        assert "seconds" in row["providers"]["ours"] and "speedup" not in row["providers"]["ours"]

    def test_nothing_measured(self, run, monkeypatch):
        monkeypatch.setitem(losses.PROGRAMS, "ours", losses.Program(lambda model, batch: None))
        status, row, _ = run("--providers", "ours")
        assert status == 1
        assert "error" in row["providers"]["ours"]

    def test_the_truth_is_that_of_a_float64_model(self, step):
        step, batch = step
        exact = losses.full(copy.deepcopy(step.model).double(), batch).item()
        truth = step.true_loss(losses.PROGRAMS["full"], batch)
        assert abs(truth.loss - exact) <= 1e-5 * exact  # the body in float32: a few hundred ulp at most
        assert 0 < truth.tolerance <= 1e-5 * exact

    def test_all_programs_take_the_same_step(self, step, monkeypatch):
        """Gradients of the other programs are as close to the float64 gradients as those of dLLM's loss."""
        monkeypatch.setattr(body, "_BACKEND", "aot_eager")
        step, batch = step

        def gradients(program: str, model: torch.nn.Module) -> dict[str, torch.Tensor]:
            model.zero_grad()
            with losses.PROGRAMS[program].prepared(model):
                losses.PROGRAMS[program].loss(model, batch).backward()
            # a key's bias shifts all scores of a query alike: its gradient is 0 but for rounding
            return {n: p.grad for n, p in model.named_parameters() if not n.endswith("key.bias")}

        for program in ("indexed", "patched", "ours", "compiled"):
            found = {name: gradient.clone() for name, gradient in gradients(program, step.model).items()}
            assert_model_no_worse(found, lambda model: gradients("full", model), step.model)

    def test_batches_are_the_trainers(self, step):
        _, batch = step
        masked = batch.masked
        assert torch.equal(batch.noisy != batch.clean, masked)
        assert (batch.noisy[masked] == MASK_ID).all() and not (batch.clean == MASK_ID).any()
        assert torch.equal(batch.clean[masked], batch.targets)
        assert torch.equal(batch.weight[masked], batch.row_weight)
        assert (batch.weight.amax(1) > 1).all()  # 1/t

    @pytest.mark.parametrize(
        "wrong",
        [
            ["--lengths", "8"],
            ["--batch", "0"],
            ["--repeats", "-1"],
            ["--threads", "x"],
            ["--providers", "theirs"],
            ["--attention", "flex"],
            ["--dtype", "float16"],
            ["--device", "no-such-device"],
            ["--out", "/dev/null/folder"],
        ],
    )
    def test_wrong_options_end_the_program(self, wrong, capsys):
        with pytest.raises(SystemExit) as end:
            training_step.main(wrong)
        assert end.value.code == 2
        assert "error:" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("wrong", "rule"),
        [(["--model", "no-such-model"], "modernbert-base"), (["--length", "97"], "--length must be at most 96")],
    )
    def test_what_does_not_suit_the_model(self, wrong, rule, folder, tmp_path, capsys):
        assert training_step.main(["--model", folder, "--out", str(tmp_path), *wrong]) == 2
        assert rule in capsys.readouterr().err

    def test_runs_as_a_file(self):
        done = programs.run(ROOT / "benchmarks" / "training_step.py", "--help", cwd=Path("/"))
        assert done.returncode == 0 and "--attention" in done.stdout


class TestQuality:
    QUICK = ("--task", "problems", "--tokens-per-step", "8", "16", "--questions", "2", "--device", "cpu")

    @pytest.fixture
    def row(self, tmp_path, capsys):
        plot = tmp_path / "plots" / "quality.png"
        assert quality.main([*self.QUICK, "--plot", str(plot), "--out", str(tmp_path)]) == 0
        assert plot.read_bytes().startswith(b"\x89PNG")
        last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        return json.loads(Path(last["row"]).read_text())

    def test_measures_every_case(self, row):
        assert [result["tokens_per_step"] for result in row["results"]] == [8, 16]
        assert [result["forwards"] for result in row["results"]] == [8, 4]
        assert all(result["questions"] == 2 and 0 <= result["accuracy"] <= 1 for result in row["results"])
        low, high = row["results"][0]["interval_95"]
        assert low <= row["results"][0]["accuracy"] <= high
        assert row["settings"]["model"] == "shipped"

    def test_weights_of_8_bits_are_marked_as_approximate(self, tmp_path, capsys):
        arguments = (
            "--task",
            "problems",
            "--tokens-per-step",
            "16",
            "--questions",
            "2",
            "--quantize",
            "none",
            "int8",
        )
        assert quality.main([*arguments, "--device", "cpu", "--out", str(tmp_path)]) == 0
        last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        full, small = json.loads(Path(last["row"]).read_text())["results"]
        assert (full["quantize"], full["approximate"]) == ("none", False)
        assert (small["quantize"], small["approximate"]) == ("int8", True)
        assert small["model_bytes"] < 0.5 * full["model_bytes"]
        text = table.table([json.loads(Path(last["row"]).read_text())])
        assert "| 2 problems | 16 |" in text and "| 2 problems | 16, weights of int8 (approximate) |" in text

    def test_a_compiled_body_stands_beside_the_eager_one(self, tmp_path, capsys, monkeypatch):
        """Traced, and run as traced: tests/fast/test_compiled.py runs the compiler's code."""
        monkeypatch.setattr(body, "_BACKEND", "eager")
        arguments = ["--task", "problems", "--tokens-per-step", "16", "--questions", "2", "--compile-body", "no", "yes"]
        assert quality.main([*arguments, "--device", "cpu", "--out", str(tmp_path)]) == 0
        last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        row = json.loads(Path(last["row"]).read_text())
        eager, compiled = row["results"]
        assert (eager["compile_body"], eager["compile_seconds"]) == (False, 0) and compiled["compile_body"]
        assert compiled["correct"] == eager["correct"] and 0 < compiled["seconds"]
        text = table.table([row])
        assert "| 2 problems | 16 |" in text and "| 2 problems | 16, compiled body |" in text

    def test_stands_in_the_readme(self, row):
        text = table.table([row])
        assert "| 2 problems | 8 |" in text and "| 2 problems | 16 |" in text
        assert "1. `python benchmarks/quality.py --task problems" in text

    def test_samplers_and_their_rules(self, tmp_path, capsys):
        rules = ["--threshold", "0", "2", "--tokens-per-step", "1", "--questions", "2", "--device", "cpu"]
        arguments = ["--task", "problems", "--sampler", "llada", "threshold", "llada2", *rules]
        plot = tmp_path / "quality.png"
        assert quality.main([*arguments, "--out", str(tmp_path), "--plot", str(plot)]) == 0
        printed = capsys.readouterr().out
        assert plot.read_bytes().startswith(b"\x89PNG")
        row = json.loads(Path(json.loads(printed.strip().splitlines()[-1])["row"]).read_text())
        exact, *rest = row["results"]
        assert (exact["sampler"], exact["approximate"], exact["forwards"]) == ("llada", False, 64)
        assert [(r["sampler"], r["threshold"], r["approximate"]) for r in rest] == [
            (sampler, threshold, True) for sampler in ("threshold", "llada2") for threshold in (0, 2)
        ]
        assert [result["forwards"] for result in rest] == [1, 64, 1, 64]
        assert rest[1]["correct"] == exact["correct"]  # a threshold above 1 commits one token per step
        assert rest[1]["share_of_one_a_step"] == 1
        assert "threshold 0 (approximate)" in printed
        assert "| 2 problems | threshold 2 (approximate) |" in table.table([row])
        assert "| 2 problems | llada, 1 |" in table.table([row])

    @pytest.mark.parametrize(
        ("arguments", "option"),
        [(["--gamma", "0.1"], "--gamma"), (["--sampler", "factor", "--tokens-per-step", "2"], "--tokens-per-step")],
    )
    def test_options_of_no_sampler(self, arguments, option, capsys):
        with pytest.raises(SystemExit) as end:
            quality.main(arguments)
        assert end.value.code == 2
        assert f"{option} is no option of" in capsys.readouterr().err

    def test_options_that_make_no_sense(self, tmp_path, capsys):
        assert quality.main([*self.QUICK, "--tokens-per-step", "7", "--out", str(tmp_path)]) == 2
        assert "tokens_per_step must divide gen_length 64, got 7" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    def test_card_of_a_run(self, row, tmp_path, capsys):
        """The card of a run folder with the shipped weights."""
        pytest.importorskip("chatterbot_corpus")
        run = tmp_path / "run"
        shutil.copytree(SHIPPED, run / "model", ignore=shutil.ignore_patterns("README.md", "curve.png"))
        entries = [{"step": 25, "loss": 2.0, "accuracy": 0.5, "seconds": 120.0}, {"step": 25, "train_runtime": 60.0}]
        (run / "trainer_state.json").write_text(json.dumps({"log_history": entries}))
        settings = {"steps": 25, "batch_size": 64, "seed": 0, "matrix_lr": 0.5, "other_lr": 0.25}
        (run / "settings.json").write_text(json.dumps(settings))
        file, other = tmp_path / "row.json", tmp_path / "other.json"
        file.write_text(json.dumps(row))
        assert model_card.main([str(run), str(file)]) == 0
        card = (run / "model" / "README.md").read_text()
        assert f"| 2 {model_card.TITLES['problems']} | 8 |" in card
        assert "25 steps of 64 conversations" in card and "2 minutes on" in card
        assert "`python -m dllm.demo.training.train runs/demo --steps 25 --matrix-lr 0.5 --other-lr 0.25`" in card
        assert "From step 9 on" in card and "answer(*load_shipped(), " in card
        assert model_card.HISTORY in card  # the weights are the shipped ones
        assert (run / "model" / "curve.png").read_bytes().startswith(b"\x89PNG")
        for setting, rule in (
            ("weights", "expected rows of benchmarks/quality.py --model"),
            ("seed", "of one setting"),
        ):
            other.write_text(json.dumps(row | {"settings": row["settings"] | {setting: 9}}))
            assert model_card.main([str(run), str(file), str(other)]) == 2
            assert rule in capsys.readouterr().err

    def test_card_says_how_a_causal_architecture_is_loaded(self):
        facts = model_card.of_run({"architecture": "llama"})
        assert facts["options"] == " --architecture llama" and "bidirectional" in facts["kind"]
        assert f"*{facts['loader']}({facts['source']})" == '*load("runs/demo/model")'

    def test_card_of_an_unfinished_run(self, tmp_path, row, capsys):
        file = tmp_path / "row.json"
        file.write_text(json.dumps(row))
        assert model_card.main([str(tmp_path), str(file)]) == 2
        assert "continue its training" in capsys.readouterr().err


class TestPublishedPlots:
    """The plots in docs/."""

    def test_the_committed_files_show_the_chosen_rows(self):
        assert plot_command.main(["--check"]) == 0
        drawn = (ROOT / "docs" / "speed.svg").read_text()
        for point in published.read_points(ROOT / "docs" / "speed.svg"):
            assert f">{published.speed_label(point)}</text>" in drawn.replace("> ", ">")

    def test_the_accuracy_is_that_of_the_shipped_weights(self):
        rows = [row for row in report.chosen_rows() if row["kind"] == "quality"]
        digests = {row["settings"]["weights"] for row in rows if row["settings"]["model"] == "shipped"}
        assert digests == {quality.digest(SHIPPED)}

    def test_the_same_rows_give_the_same_file(self, tmp_path):
        rows = report.chosen_rows()
        for name in published.PLOTS:
            points = published.points_of(name, rows)
            once, again = (published.write(name, points, tmp_path / folder).read_bytes() for folder in "ab")
            assert once == again and len(once) < 100_000
            assert published.read_points(tmp_path / "a" / name) == points

    def test_another_row_makes_them_stale(self, tmp_path, capsys):
        results = tmp_path / "benchmarks" / "results"
        results.mkdir(parents=True)
        (results / "chosen.txt").write_text("sampler.json\nsampler_steps.json\n")
        assert plot_command.main(["--root", str(tmp_path)]) == 2
        assert "benchmarks.plot: [Errno" in capsys.readouterr().err
        chosen = report.chosen_rows()
        kinds = (
            "sampler",
            "sampler_steps",
            "quality",
            "edit_lessons",
            "cpu_bodies",
            "diffusion_gemma",
            "grpo_lessons",
            "serving",
        )
        rows = {kind: next(row for row in chosen if row["kind"] == kind) for kind in kinds}
        for kind, row in rows.items():
            (results / f"{kind}.json").write_text(json.dumps(row))
        assert plot_command.main(["--root", str(tmp_path)]) == 2
        assert "no chosen row has anything for accuracy.svg" in capsys.readouterr().err
        (results / "chosen.txt").write_text("".join(f"{kind}.json\n" for kind in kinds))
        for words, status in ((["--check"], 1), ([], 0), (["--check"], 0)):
            assert plot_command.main(["--root", str(tmp_path), *words]) == status
        rows["sampler"]["providers"]["card"]["tokens_per_second"] *= 2
        (results / "sampler.json").write_text(json.dumps(rows["sampler"]))
        capsys.readouterr()
        assert plot_command.main(["--root", str(tmp_path), "--check"]) == 1
        assert capsys.readouterr().err == "docs/speed.svg is out of date: run python -m benchmarks.plot\n"


class TestTable:
    SAMPLER = "<!-- results:begin sampler -->"

    @pytest.fixture
    def root(self, run, tmp_path, capsys):
        """Documents with markers, and a results folder with two chosen rows, one of them for RESULTS.md and a page."""
        _, last, _, _ = run()
        sampler = Path(last["cases"][0]["row"])
        results = tmp_path / "root" / "benchmarks" / "results"
        results.mkdir(parents=True)
        shutil.copy(sampler, results)
        answers = {"questions": 2, "task": "problems", "accuracy": 0.5, "interval_95": [0.1, 0.9]}
        answers |= {"tokens_per_forward": 1.0, "tokens_per_step": 1}
        settings = {"model": "shipped", "block_length": 8, "gen_length": 8}
        quality = {"kind": "quality", "command": "asked so", "settings": settings, "results": [answers]}
        (results / "quality.json").write_text(json.dumps(json.loads(sampler.read_text()) | quality))
        (results / "chosen.txt").write_text(f"# two\n\n{sampler.name}\nquality.json\n")
        begins = (self.SAMPLER, table.BEGIN)
        for name, begin in zip(table.DOCUMENTS, begins, strict=True):
            (tmp_path / "root" / name).write_text(f"before\n{begin}\nold\n{table.END}\nafter\n")
        return tmp_path / "root"

    def test_writes_and_checks(self, root, capsys):
        arguments = ["--root", str(root)]
        assert table.main([*arguments, "--check"]) == 1
        assert capsys.readouterr().err.count("out of date") == 2
        assert table.main(arguments) == 0
        readme, everything = ((root / name).read_text() for name in table.DOCUMENTS)
        for text, begin in ((readme, self.SAMPLER), (everything, table.BEGIN)):
            assert text.startswith(f"before\n{begin}\n| model |")
            assert text.endswith(f"{table.END}\nafter\n")
            assert "| tiny-bert float32 | 1 | 0 |" in text
            assert "1. `python benchmarks/sampler_throughput.py" in text
        assert "2. `asked so`" in everything and "asked so" not in readme
        assert table.main([*arguments, "--check"]) == 0
        (root / "README.md").write_text(readme.replace("tiny-bert", "huge-bert"))
        assert table.main([*arguments, "--check"]) == 1
        assert capsys.readouterr().err == "README.md is out of date: run python -m benchmarks.table\n"

    def test_nothing_chosen(self, root):
        (root / "benchmarks" / "results" / "chosen.txt").write_text("# none yet\n")
        assert table.main(["--root", str(root)]) == 0
        assert (root / "README.md").read_text() == f"before\n{self.SAMPLER}\n{table.END}\nafter\n"

    def test_pages_of_docs_say_which_kinds_they_show(self, root):
        (root / "docs").mkdir()
        place = "<!-- results:begin {} -->\n" + table.END
        page, plain = root / "docs" / "page.md", root / "docs" / "plain.md"
        page.write_text(f"{place.format('quality')}\n\nand\n\n{place.format('sampler')}\n")
        plain.write_text("`<!-- results:begin -->` is only quoted here.\n")
        assert table.main(["--root", str(root)]) == 0
        first, second = page.read_text().split("\nand\n")
        assert "1. `asked so`" in first and "tiny-bert" not in first
        assert "1. `python benchmarks/sampler_throughput.py" in second and "asked so" not in second
        assert plain.read_text() == "`<!-- results:begin -->` is only quoted here.\n"

    def test_marked_rows_are_in_the_summary(self, root, capsys):
        """Rows of two kinds in one table; a row without the mark is not in it, one of another kind is refused."""
        results = root / "benchmarks" / "results"
        step = {"tokens_per_second": 100.0, "peak_bytes": 2e7}
        training = {"kind": "training_step", "command": "trained so", "machine": {"cpu": "A processor", "threads": 2}}
        training |= {"settings": {"model": "tiny", "dtype": "float32", "batch": 8, "length": 256}}
        training |= {"providers": {"full": step, "ours": step | {"tokens_per_second": 150.0, "against": "full"}}}
        (results / "training.json").write_text(json.dumps(training))
        sampler = next(path.name for path in results.glob("*-sampler-*.json"))
        (results / "chosen.txt").write_text(f"{sampler} summary\nquality.json\ntraining.json summary\n")
        (root / "README.md").write_text(f"<!-- results:begin summary -->\n{table.END}\n")
        (root / "benchmarks" / "RESULTS.md").write_text(f"{self.SAMPLER}\n{table.END}\n")
        assert table.main(["--root", str(root)]) == 0
        lines = (root / "README.md").read_text().splitlines()
        assert len([line for line in lines if line.startswith("| ")]) == 3
        assert "| sampling at temperature 0: the card's loop -> generate | tiny-bert float32, batch " in lines[3]
        expected = "| training step: full logits -> MDLMTrainer's loss | tiny float32, batch 8 x 256 |"
        assert f"{expected} A processor, 2 threads | 100 -> 150 | 1.5x | 20 -> 20 | 2 |" in lines
        assert "2. `trained so`" in lines
        (results / "chosen.txt").write_text("quality.json summary\n")
        assert table.main(["--root", str(root)]) == 2
        assert "must be of a kind among sampler, sampler_steps, training_step, got quality" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("text", "rule"),
        [
            (
                "<!-- results:begin weather -->\n<!-- results:end -->",
                "page.md: kinds of rows must be among sampler, .* got weather",
            ),
            ("<!-- results:begin -->\n", "page.md needs the lines .* in pairs"),
            ("<!-- results:begin -->\n<!-- results:begin -->\n<!-- results:end -->", "in pairs"),
            ("<!-- results:begin: sampler -->\n<!-- results:end -->", "in pairs"),
        ],
    )
    def test_wrong_markers(self, text, rule):
        with pytest.raises(ValueError, match=rule):
            table.with_tables(text, [], "page.md")

    def test_the_page_of_results_shows_every_kind(self):
        places = table.PLACE.finditer((ROOT / "benchmarks" / "RESULTS.md").read_text())
        assert {kind for place in places for kind in place["kinds"].split()} == set(table.KINDS)

    def test_missing_markers(self, root, capsys):
        (root / "README.md").write_text("nothing here")
        assert table.main(["--root", str(root)]) == 2
        assert f"README.md needs the lines {table.BEGIN}" in capsys.readouterr().err

    def test_row_without_both_programs(self):
        row = {"kind": "sampler", "command": "c", "settings": {}, "providers": {"card": {"error": "no"}}}
        with pytest.raises(ValueError, match="both"):
            table.table([row])

    def test_samplers_are_named(self):
        provider = {"tokens_per_second": 10.0, "ms_per_step": {"median": 5.0}}
        row = {"kind": "sampler", "command": "c", "providers": {"card": provider, "ours-eager": provider}}
        row |= {"machine": {"cpu": "A processor", "threads": 2}}
        settings = {"model": "minilm", "dtype": "float32", "batch": 1, "temperature": 0.0, "sampler": "threshold"}
        row |= {"settings": settings | {"approximate": True, "options": {"threshold": 0.9}}}
        assert "| threshold 0.9 (approximate): minilm float32 | 1 | 0 | A processor, 2 threads |" in table.table([row])

    def test_row_of_a_kind_without_a_table(self):
        with pytest.raises(ValueError, match="got weather"):
            table.table([{"kind": "weather", "command": "c"}])

    def test_kernel_rows(self):
        result = {"dtype": "float32", "temperature": 1.0, "speedup": 20.0, "share_of_read_speed": 0.5}
        result |= {"eager_seconds": {"median": 0.2}, "kernel_seconds": {"median": 0.01}}
        row = {"kind": "cpu_kernels", "command": "python benchmarks/cpu_kernels.py", "results": [result]}
        row |= {"settings": {"rows": 64, "vocab": 50368}, "machine": {"cpu": "A processor", "threads": 2}}
        assert "| 64 x 50368 float32 | 1 | A processor, 2 threads | 200.0 | 10.00 | 20.0x | 50% | 1 |" in table.table(
            [row]
        )


def test_bandwidth_is_positive(monkeypatch):
    monkeypatch.undo()
    speed = machine.bandwidth(CPU, repeats=1, n_bytes=2**20)
    assert speed["read"] > 0
    assert speed["copy"] > 0
