"""Which configuration of accelerate fits: the formulae against the paper's numbers, and their order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from dllm.cli import main
from dllm.core.trainers import MDLMConfig
from dllm.estimates.sharding import CONFIGS, GPU_BYTES, GPUS, Shares, bytes_per_process, units
from dllm.estimates.text import fit_report
from dllm.estimates.training import estimate
from tests.documents import ROOT
from tests.estimates.official import CONFIGS as FOLDERS
from tests.estimates.official import PARAMETERS, arguments, config_of

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = Shares(
    trained=7_500_000_000,
    trained_bytes=15_000_000_000,
    frozen=0,
    frozen_bytes=0,
    layer=0,
    rest=0,
    states=2,
    fixed=0,
    half=True,
)


@pytest.mark.parametrize("config, published, extra", [("zero1", 31.4, 2.0), ("zero2", 16.6, 2.0), ("zero3", 1.9, 2.0)])
def test_the_numbers_of_the_zero_paper(config, published, extra):
    """Table 1 of arXiv:1910.02054: 7.5 B parameters on 64 GPUs, in GB, without DeepSpeed's buckets."""
    assert round(bytes_per_process(config, 64, PLAIN) / 1e9 - extra, 1) == published
    assert bytes_per_process("zero1", 1, PLAIN) == 120e9 + 2e9


def test_ddp_and_fsdp_by_hand():
    assert bytes_per_process("ddp", 8, PLAIN) == (2 + 2 + 2 + 2 * 2) * PLAIN.trained
    run = replace(PLAIN, layer=10**8, rest=10**9, fixed=5)
    for config in ("fsdp", "fsdp2"):
        assert bytes_per_process(config, 4, run) == 16 * run.trained // 4 + 2 * (10**9 + 2 * 10**8) + 2 * 10**9 + 5
    single = replace(PLAIN, trained_bytes=4 * PLAIN.trained, half=False)
    assert bytes_per_process("zero2", 4, single) == (4 + 12 / 4) * single.trained + 2 * 4 * 5e8
    assert bytes_per_process("fsdp2", 4, single) == 16 * single.trained // 4


ADAPTER = replace(PLAIN, trained=10**7, trained_bytes=4 * 10**7, frozen=10**10)
RUNS = {
    "whole": PLAIN,
    "small": replace(PLAIN, trained=1000, trained_bytes=4000, half=False, layer=100, rest=300, fixed=10**6),
    "adapter": replace(ADAPTER, frozen_bytes=2 * 10**10, layer=10**9),
    "4 bit": replace(ADAPTER, frozen_bytes=5 * 10**9, quantised=True),
    "sgd": replace(PLAIN, states=0),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("config", CONFIGS)
def test_more_gpus_never_need_more(config, run):
    needed = [bytes_per_process(config, gpus, run) for gpus in range(1, 17)]
    if None in needed:
        assert run.quantised and set(needed) == {None} and config in ("zero3", "fsdp", "fsdp2")
        return
    assert needed == sorted(needed, reverse=True) and needed[-1] >= run.fixed
    assert (needed[0] > needed[-1]) == (config != "ddp")


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_later_stage_never_needs_more(run):
    for gpus in GPUS:
        first, second = (bytes_per_process(config, gpus, run) for config in ("zero1", "zero2"))
        assert first >= second


def test_what_a_trainer_refuses_is_said():
    lines = fit_report(replace(PLAIN, refused=("zero3", "fsdp2")))[1:]
    assert [line.split()[0] for line in lines if line.split()[1:] == ["refused"] * 3] == ["zero3", "fsdp2"]
    assert bytes_per_process("zero3", 8, replace(PLAIN, refused=("zero3",))) is None


def test_what_is_unknown_stays_so():
    for unknown in (replace(PLAIN, states=None), replace(PLAIN, fixed=None)):
        assert {bytes_per_process(config, 8, unknown) for config in CONFIGS} == {None}
    with pytest.raises(ValueError, match="must be one of ddp, zero1"):
        bytes_per_process("zero4", 8, PLAIN)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        bytes_per_process("ddp", 0, PLAIN)


def test_the_configurations_are_those_of_the_scripts():
    folder = ROOT / "scripts" / "accelerate_configs"
    assert {file.stem for file in folder.glob("*.yaml")} - {"cpu"} == set(CONFIGS)
    for config in CONFIGS:
        content = yaml.safe_load((folder / f"{config}.yaml").read_text())
        kind = {"ddp": "MULTI_GPU", "zero": "DEEPSPEED", "fsdp": "FSDP"}[config.rstrip("123")]
        assert content["distributed_type"] == kind
        # nothing is offloaded, and no bucket has another size than DeepSpeed's default, as the formulae say
        deepspeed = content.get("deepspeed_config", {})
        assert not {"reduce_bucket_size", "allgather_bucket_size", "stage3_max_live_parameters"} & deepspeed.keys()
        assert all(value == "none" for name, value in deepspeed.items() if "offload" in name)
        assert not content.get("fsdp_config", {}).get("fsdp_offload_params")
        if config.startswith("zero"):
            assert deepspeed["zero_stage"] == int(config[-1])


def found(name, *, max_length=64, training=None, **model):
    args = MDLMConfig(output_dir="out", report_to="none", per_device_train_batch_size=1, **(training or {}))
    return estimate(config_of(name), arguments(name, **model), max_length, args)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_models(name):
    size = found(name)
    assert size.parameters == size.trained == size.shares.trained == PARAMETERS[name]
    assert size.memory.weights == 2 * PARAMETERS[name] and size.memory.activations > 0
    assert size.shares.fixed == size.memory.activations + size.memory.head
    table = {config: [bytes_per_process(config, gpus, size.shares) <= GPU_BYTES for gpus in GPUS] for config in CONFIGS}
    assert not any(table[config][0] for config in CONFIGS if config != "ddp")  # 16 bytes a parameter
    assert table["fsdp2"][2] and all(fits == sorted(fits) for fits in table.values())


def test_activations_of_experts_grow_with_those_chosen():
    """The weights of experts are not copied for each token: k rows of it are kept, not k matrices."""
    config = config_of("llada2-mini")
    config.num_hidden_layers = 3
    args = MDLMConfig(output_dir="out", report_to="none", per_device_train_batch_size=1)
    kept = estimate(config, arguments("llada2-mini"), 64, args).memory.activations
    assert 2 * 64 * 8 * (2048 + 3 * 512 + 2048) * 2 < kept < 60 * 2**20 < 64 * 8 * 3 * 2048 * 512 * 2


def test_layers_and_the_rest():
    from dllm.estimates.fake import model_on_meta

    layer, rest = units(model_on_meta(config_of("llada-8b"), arguments("llada-8b")))
    assert layer == 4 * 4096**2 + 3 * 4096 * 12288 + 2 * 4096
    assert rest == 2 * 126464 * 4096 + 4096 == PARAMETERS["llada-8b"] - 32 * layer


def test_gradient_checkpointing_keeps_the_inputs_of_layers():
    whole, checkpointed = (
        found("llada-8b", training=dict(gradient_checkpointing=on)).memory.activations for on in (False, True)
    )
    assert checkpointed == 32 * 64 * 4096 * 2 + whole // 32


def test_adapters_and_4_bit_fit_on_one_gpu():
    pytest.importorskip("peft")
    whole = found("llada-8b")
    adapter = found("llada-8b", lora=True, r=8)
    small = found("llada-8b", lora=True, r=8, load_in_4bit=True)
    assert adapter.shares.frozen == PARAMETERS["llada-8b"] and adapter.shares.trained == adapter.trained
    needed = [bytes_per_process("ddp", 1, size.shares) for size in (whole, adapter, small)]
    assert needed[0] > GPU_BYTES > needed[1] > needed[2]
    assert bytes_per_process("fsdp2", 8, adapter.shares) < bytes_per_process("ddp", 8, adapter.shares)
    assert bytes_per_process("fsdp2", 8, small.shares) is None


def test_the_command_with_a_configuration_alone(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--dry-run", "--model_name_or_path", str(FOLDERS / "dream-7b"), "--output_dir", "out"]
    assert main([*words, "--report_to", "none", "--max_length", "64"]) == 0
    out = capsys.readouterr().out
    assert "7,615,616,512 parameters" in out and "data        none named" in out
    lines = out.splitlines()
    assert lines[-7].split("  ")[0] == "fits" and [line.split()[0] for line in lines[-6:]] == list(CONFIGS)
    assert not list(tmp_path.iterdir())
    assert main([word for word in words if word != "--dry-run"]) == 1  # a run needs data and a tokenizer
    assert "Traceback" not in capsys.readouterr().err
