"""A checkpoint of Nemotron-Labs-Diffusion from its folder to texts: its own code, its tokenizer, commands, evaluation.

The code in the folder is a module with the interface of the published one (`tests/nemotron_models.py`).
"""

from __future__ import annotations

import io
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from dllm.core.samplers import NemotronDiffusionSampler, sampler_for
from dllm.models import get_model, get_tokenizer
from tests import nemotron_models, official_tokenizers

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
CODE = "modeling_nemotron_labs_diffusion"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    made = tmp_path_factory.mktemp("nemotron") / "checkpoint"
    rows = official_tokenizers.ROWS
    mask, end = (official_tokenizers.token_id("llada", token) for token in ("<|mdm_mask|>", "<|eot_id|>"))
    model = nemotron_models.tiny_nemotron(vocab_size=rows, mask_token_id=mask, eos_token_id=end)
    classes = {"AutoConfig": "NemotronLabsDiffusionConfig", "AutoModel": "NemotronLabsDiffusionModel"}
    fields = {name: value for name, value in model.config.to_dict().items() if value is not None}
    fields |= {
        "auto_map": {kind: f"{CODE}.{name}" for kind, name in classes.items()},
        "bos_token_id": "<|startoftext|>",
    }
    official_tokenizers.write("llada", made, **fields)
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    (made / f"{CODE}.py").write_text(Path(nemotron_models.__file__).read_text())
    save_file(model.state_dict(), made / "model.safetensors", metadata={"format": "pt"})
    return str(made)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """transformers copies a checkpoint's code there, and imports the copy."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.getbasetemp() / "code"))


def test_its_code_runs_only_if_it_is_trusted(folder):
    with pytest.raises(ValueError, match="trust_remote_code=True would run that code"):
        get_model(model_name_or_path=folder, dtype="float32")


def test_it_loads_and_samples_as_its_own_loop_does(folder):
    model = get_model(model_name_or_path=folder, dtype="float32", trust_remote_code=True).eval()
    tokenizer = get_tokenizer(model_name_or_path=folder)
    assert tokenizer.mask_token_id == model.config.mask_token_id and tokenizer.mask_token == "<|mdm_mask|>"
    chosen = sampler_for(model)
    assert chosen.sampler is NemotronDiffusionSampler and chosen.config.block_size == 32
    prompt = tokenizer("What is 12 * 4?", add_special_tokens=False).input_ids
    tokens, _ = model.generate(torch.tensor([prompt]), 64, 32, 0.9)
    sampler = chosen.sampler(model, tokenizer)
    found = sampler.sample([prompt], chosen.config, max_new_tokens=64, stop_at_eos=False)
    assert found[0].tolist() == tokens[0].tolist()
    assert sampler.plan([prompt], chosen.config).policy.eot_id == model.config.eos_token_id


@pytest.mark.parametrize("script", ["sample.py", "chat.py"])
def test_examples(script, folder, monkeypatch, capsys):
    words = ["--model_name_or_path", folder, "--trust_remote_code", "True", "--max_new_tokens", "12"]
    words += ["--visualize", "False", *(["--prompt", "Hi", "Who are you?"] if script == "sample.py" else [])]
    monkeypatch.setattr(sys, "argv", [script, *words])
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "examples" / "nemotron_diffusion" / script), run_name="__main__")
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    assert out.count("  -> ") == 2 or script == "chat.py"


def test_names_and_defaults_of_dllm():
    from dllm.pipelines import nemotron_diffusion

    model = nemotron_models.tiny_nemotron()
    sampler = nemotron_diffusion.NemotronDiffusionSampler(model, SimpleNamespace(mask_token_id=3, eos_token_id=2))
    found = sampler.sample([[5, 6]], block_length=4, max_new_tokens=8, max_thinking_tokens=None, return_dict=True)
    assert isinstance(found, nemotron_diffusion.NemotronDiffusionSamplerOutput)
    assert found.nfe == found.stats.row_forwards[0] and found.sequences.shape == (1, 10)
    config = nemotron_diffusion.NemotronDiffusionSamplerConfig()
    assert (config.max_new_tokens, config.max_thinking_tokens, config.threshold) == (8192, 6000, 0.9)


def test_evaluation(folder, tmp_path):
    pytest.importorskip("lm_eval")
    from dllm.core.eval.models import name_for
    from tests.core.eval import local_tasks

    assert name_for(folder) == "nemotron_diffusion"
    given = dict(pretrained=folder, dtype="float32", max_new_tokens=8, block_length=8, device="cpu")
    given |= dict(trust_remote_code=True, max_length=256)
    tasks = local_tasks.write(tmp_path / "tasks")
    found = local_tasks.evaluate(
        "nemotron_diffusion", tasks, ["sums_generated"], model_args=given, limit=2, apply_chat_template=False
    )
    cost = found["config"]["dllm"]["cost"]["sums_generated"]
    assert cost["requests"] == 2 and cost["tokens"] > 0
    with pytest.raises(ValueError, match="nemotron_diffusion has no"):
        local_tasks.evaluate(
            "nemotron_diffusion", tasks, ["sums_chosen"], model_args=given, limit=1, apply_chat_template=False
        )
