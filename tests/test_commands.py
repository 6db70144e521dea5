"""Command lines that make no sense, and models and data that cannot be used: every command says so in one line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dllm.cli import main
from dllm.demo.shipped import SHIPPED
from dllm.demo.training import gauge
from dllm.models import get_model
from dllm.tools import preprocess_sft_dataset

for package in ("accelerate", "datasets", "peft"):
    pytest.importorskip(package)
pytestmark = pytest.mark.usefixtures("one_thread")

DIALOGUE = [{"role": "user", "content": "What is 2 * 2?"}, {"role": "assistant", "content": "2 * 2 = 4."}]


def _set(**fields):
    return lambda folder: _write(
        folder / "config.json", json.dumps(json.loads((folder / "config.json").read_text()) | fields)
    )


def _write(file: Path, text: str | bytes) -> None:
    file.unlink(missing_ok=True)  # what lies there is a link to the shipped model's file
    file.write_bytes(text.encode() if isinstance(text, str) else text)


def _not_finite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.Wi.weight"][:] = torch.nan
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def _half(folder: Path) -> None:
    _write(folder / "model.safetensors", (SHIPPED / "model.safetensors").read_bytes()[:100_000])


def _download_broken_off(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    shards = {"weight_map": {"head.dense.weight": "model-00001-of-00002.safetensors"}, "metadata": {}}
    _write(folder / "model.safetensors.index.json", json.dumps(shards))


TEMPLATE = "chat_template.jinja"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", TEMPLATE)
# name: what is wrong with a folder that would be a copy of the shipped model, what is said, exit code of `generate`
FOLDERS = {
    "empty": (_remove("config.json", "model.safetensors", *TOKENIZER), "must hold a tokenizer", 2),
    "no config": (_remove("config.json"), "must hold a model, got no config.json", 2),
    "config cut": (lambda f: _write(f / "config.json", '{"model_type": '), "configuration at", 2),
    "config is a list": (lambda f: _write(f / "config.json", "[1]"), "configuration at", 2),
    "a model type that is none": (lambda f: _write(f / "config.json", '{"model_type": [1]}'), "model_type must be", 2),
    "a marker that is none": (
        lambda f: _write(f / "config.json", '{"model_type": "llama", "masked_diffusion": 3}'),
        "masked_diffusion must be",
        2,
    ),
    "unknown type": (_set(model_type="nosuch"), "nosuch", 2),
    "no language model": (_set(model_type="vit"), "no masked language model of type 'vit'", 2),
    "causal": (_set(model_type="llama"), '"is_causal": false in the config.json', 2),
    "other shape": (_set(hidden_size=96), "do not fit its configuration: shapes differ", 2),
    "impossible heads": (_set(num_attention_heads=7), "attention heads", 2),
    "no weights": (_remove("model.safetensors"), "no file named model.safetensors", 2),
    "weights cut": (_half, "damaged, or were not written to their end", 2),
    "no bytes": (lambda f: _write(f / "model.safetensors", ""), "damaged, or were not written to their end", 2),
    "download broken off": (_download_broken_off, "weights at", 2),
    "no tokenizer": (_remove(*TOKENIZER), "must hold a tokenizer", 2),
    "tokenizer damaged": (lambda f: _write(f / "tokenizer.json", "{}"), "tokenizer at", 2),
    "template raises": (
        lambda f: _write(f / TEMPLATE, "{{ raise_exception('no role') }}"),
        "no role",
        1,
    ),
    "template cut": (lambda f: _write(f / TEMPLATE, "{% for m in"), "the chat template", 1),
    "template of another": (lambda f: _write(f / TEMPLATE, "{{ messages.a.b }}"), "the chat template", 1),
    "not finite": (_not_finite, "no logit was finite at step 0", 1),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A folder for each way in which a model is broken; an adapter, with and without its base model; data."""
    root = tmp_path_factory.mktemp("models")
    for name, (spoil, _, _) in FOLDERS.items():
        (root / name).mkdir()
        for file in ("config.json", "model.safetensors", *TOKENIZER):
            os.symlink(SHIPPED / file, root / name / file)
        spoil(root / name)
    model = get_model(model_name_or_path=str(SHIPPED), dtype="float32", lora=True, r=2, target_modules=".*Wqkv")
    model.save_pretrained(root / "adapter")
    for name, base in (("adapter without base", None), ("adapter of nothing", "/no/base")):
        shutil.copytree(root / "adapter", root / name)
        _write_base(root / name / "adapter_config.json", base)
    for name, text in {
        "data": json.dumps({"messages": DIALOGUE}) + "\n",
        "data empty": "",
        "data cut": '{"a": ',
        "data of texts": json.dumps({"text": "What is 2 * 2? " * 50}) + "\n",
    }.items():
        (root / name).mkdir()
        (root / name / "train.jsonl").write_text(text)
    (root / "a file").write_text("text")
    return root


def _write_base(file: Path, base: str | None) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))


def run(program, words, tmp_path, stdin: str = "What is 2 * 2?\n") -> tuple[int, str, str]:
    """Exit code, stdout and what stderr says besides bars."""
    out, err, before = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = program([str(word) for word in words])
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdin = before
    return code, out.getvalue(), err.getvalue()


def train(folders: Path, tmp_path: Path, **changed) -> list:
    given = dict(model_name_or_path=SHIPPED, dataset_args=folders / "data", output_dir=tmp_path / "out", max_steps=1)
    given |= dict(report_to="none", max_length=64, num_proc=1, use_cpu="true", bf16="false", dtype="float32")
    return ["train", *(word for name, value in (given | changed).items() for word in (f"--{name}", value))]


def commands(folders: Path, tmp_path: Path, model) -> dict:
    """Every way to name a model on a command line."""
    return {
        "generate": (main, ["generate", "Hi", "--model", model]),
        "chat": (main, ["chat", "--model", model]),
        "train": (main, train(folders, tmp_path, model_name_or_path=model)),
        "gauge": (gauge.main, ["--questions", "1", "--model", model, "--device", "cpu"]),
    }


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_cannot_be_used(name, folders, tmp_path):
    """The same in every command."""
    _, said, code = FOLDERS[name]
    for command, (program, words) in commands(folders, tmp_path, folders / name).items():
        if name == "not finite" and command == "train":
            continue  # what its loss is, the log tells
        got, out, err = run(program, words, tmp_path)
        assert got == (1 if command == "train" or (command == "chat" and code == 1) else code), err
        assert said in err.splitlines()[-1] and "Traceback" not in err
        assert command in ("train", "gauge") or not out.strip()


@pytest.mark.parametrize(
    "name, said",
    [
        ("adapter without base", "does not name its base model"),
        ("adapter of nothing", "is not there: there is no folder /no/base"),
        ("a file", "there is no folder"),
        ("no such folder", "there is no folder"),
    ],
)
def test_a_model_that_is_not_there(name, said, folders, tmp_path):
    tools = {"preprocess": (preprocess_sft_dataset.main, ["--dataset_args", folders / "data", "--output_dir", "x"])}
    tools["preprocess"][1].extend(["--model_name_or_path", folders / name])
    dry = {"dry": (main, [*train(folders, tmp_path, model_name_or_path=folders / name), "--dry-run"])}
    for command, (program, words) in (commands(folders, tmp_path, folders / name) | tools | dry).items():
        code, _, err = run(program, words, tmp_path)
        assert code == (1 if command in ("train", "dry", "preprocess") else 2) and said in err.splitlines()[-1], err


def test_an_adapter_is_a_model_in_every_command(folders, tmp_path):
    """It came without a tokenizer: that is the base model's. A fresh one changes nothing."""
    for model in (folders / "adapter", SHIPPED):
        code, out, _ = run(main, ["generate", "What is 2 * 2?", "--model", model, "--gen-length", "16"], tmp_path)
        assert (code, out) == (0, "2 * 2 = 4.\n")
    code, out, _ = run(main, ["chat", "--model", folders / "adapter", "--gen-length", "16"], tmp_path)
    assert (code, out) == (0, "2 * 2 = 4.\n")
    words = train(folders, tmp_path, model_name_or_path=folders / "adapter")
    for more in ([], ["--dry-run"]):
        code, _, err = run(main, [*words, *more], tmp_path)
        assert code == 1 and "would be trained: with lora the adapter that lies there is" in err
    code, out, err = run(main, [*words, "--lora", "--dry-run"], tmp_path)
    assert code == 0 and "trained" in out, err
    trained = sum(w.numel() for w in load_file(folders / "adapter" / "adapter_model.safetensors").values())
    assert f"{trained:,} trained" in out
    code, _, err = run(main, [*words, "--lora"], tmp_path)
    assert code == 0, err
    again = get_model(model_name_or_path=str(tmp_path / "out" / "checkpoint-final"), dtype="float32")
    assert type(again).__name__.startswith("PeftModel")


LINES = [
    (["generate", "Hi", "--gen-length", "-3"], 2, "gen_length must be at least 1, got -3"),
    (["generate", "Hi", "--gen-length", "500"], 2, "gen_length must be less than the model's 192 positions, got 500"),
    (["generate", "What is 2 * 2? " * 40], 2, "expected a prompt of at most 128 tokens"),
    (["generate", "Hi", "--steps", "0"], 2, "steps must be at least 1, got 0"),
    (["generate", "Hi", "--block-length", "7"], 2, "must be a multiple of block_length"),
    (["generate", "Hi", "--temperature", "nan"], 2, "temperature must be finite"),
    (["generate", "Hi", "--device", "toaster"], 2, "a device of this machine"),
    (["generate", "Hi", "--device", ""], 2, "a device of this machine"),
    (["generate", "Hi", "--t-max", "1"], 2, "the loop of model cards has no t_max, so --t-max must not be given"),
    (["generate", "Hi", "--model", ""], 2, "must be named by a folder or a name on the Hub"),
    (["generate", "[MASK]"], 2, "must not contain the mask token"),
    (["generate", "\udcff"], 2, "a text must be UTF-8, got other bytes at character 0"),
    (["generate", "-"], 2, "expected a question, got an empty text"),
    (["generate", "Hi", "--nosuch"], 2, "unrecognized arguments: --nosuch"),
    (["chat", "--gen-length", "0"], 2, "max_new_tokens must be at least 1, got 0"),
    (["chat", "--gen-length", "500"], 2, "the answer takes 500 more: the model has room for 192"),
    (["chat", "--raw", "--gen-length", "500"], 2, "the answer takes 500 more: the model has room for 192"),
    (["chat", "--steps", "1000000000"], 2, "a block must take at most 16384 steps, got 1000000000"),
    (["chat", "--seed", str(2**70)], 2, "a seed must fit into 64 bits"),
    (["chat", "--system", "\udcff"], 2, "a text must be UTF-8, got other bytes at character 0"),
    (["chat", "--device", ""], 2, "a device of this machine"),
    (["chat", "--model", ""], 2, "must be named by a folder or a name on the Hub"),
    (["nosuch"], 2, "invalid choice"),
    (["train"], 2, "output_dir must name"),
    (["train", "/no.yaml"], 2, "there is no file /no.yaml"),
]


@pytest.mark.parametrize("words, code, said", LINES)
def test_a_command_line_that_makes_no_sense(words, code, said, tmp_path):
    got, out, err = run(main, words, tmp_path, stdin="")
    assert (got, out) == (code, "") and said in err and "Traceback" not in err


@pytest.mark.parametrize(
    "changed, code, said",
    [
        (dict(dtype="int8"), 1, "dtype must name a floating-point dtype"),
        (dict(max_length=0), 2, "max_length must be at least 1, got 0"),
        (dict(max_length=1, truncation="filter"), 1, "is left to train on"),
        (dict(learning_rate="nan"), 2, "learning_rate must be finite"),
        (dict(per_device_train_batch_size=0), 2, "per_device_train_batch_size must be at least 1, got 0"),
        (dict(gradient_accumulation_steps=0), 2, "gradient_accumulation_steps must be at least 1, got 0"),
        (dict(dataloader_num_workers=-1), 2, "dataloader_num_workers must be at least 0, got -1"),
        (dict(seed=-1), 2, "seed must lie in"),
        (dict(accelerator_config="{x"), 2, "Expecting"),
        (dict(attn_implementation="nosuch"), 1, "nosuch"),
        (dict(lora="true", target_modules="nosuch"), 1, "nosuch"),
        (dict(dataset_args="/no/data"), 1, "/no/data"),
        (dict(dataset_args="data empty"), 1, "is empty"),
        (dict(dataset_args="data cut"), 1, "is no JSON"),
        (dict(output_dir="a file/out", save_strategy="steps"), 1, "is no folder"),
        (dict(resume_from_checkpoint="/no/checkpoint"), 1, "no whole checkpoint"),
        (
            dict(task="pt", dataset_args="data of texts", shape="num_attention_heads=0"),
            1,
            "cannot be used: ZeroDivisionError",
        ),
        (
            dict(task="pt", dataset_args="data of texts", model_type="gpt2"),
            1,
            "no masked language model of type 'gpt2'",
        ),
    ],
)
def test_settings_of_a_run_that_make_no_sense(changed, code, said, folders, tmp_path):
    changed = {k: folders / v if str(v).startswith(("data ", "a file")) else v for k, v in changed.items()}
    got, _, err = run(main, train(folders, tmp_path, **changed), tmp_path)
    assert got == code and said in err.splitlines()[-1] and "Traceback" not in err, err


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that cannot be written to")
def test_a_folder_that_cannot_be_written_to(folders, tmp_path):
    code, _, err = run(main, train(folders, tmp_path, output_dir="/proc/out"), tmp_path)
    assert code == 1 and "/proc/out" in err.splitlines()[-1]
