"""What is told of sampling beforehand is what sampling takes."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, LlamaConfig, LlamaForCausalLM, ModernBertConfig

from dllm.cli import main
from dllm.configs import ModelArguments
from dllm.core.samplers import BD3LMSampler, BD3LMSamplerConfig, FastDLLMSampler, FastDLLMSamplerConfig
from dllm.demo.shipped import SHIPPED
from dllm.estimates.costs import Canvas
from dllm.estimates.experts import mixture_of
from dllm.estimates.fake import LiveBytes, model_on_meta
from dllm.estimates.sampling import estimate_sampling
from dllm.fast import generate
from dllm.fast.sampling import running
from dllm.fast.sampling.inputs import Settings
from dllm.fast.sampling.plan import Planner
from dllm.models import bidirectional
from tests import programs
from tests.estimates.official import CONFIGS, PARAMETERS, arguments, config_of

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = dict(vocab_size=512, hidden_size=96, intermediate_size=256, num_hidden_layers=3)
SMALL |= dict(num_attention_heads=4, num_key_value_heads=2, is_causal=False)
MASK, EOS = 3, 1


def canvas_of(*, batch=1, prompt=32, length=32, block=32, cfg_scale=0.0, steps=None) -> Canvas:
    settings = Settings(
        steps=steps or length,
        gen_length=length,
        block_length=block,
        temperature=0,
        cfg_scale=cfg_scale,
        remasking="low_confidence",
    )
    return Canvas(batch=batch, prompt=prompt, settings=settings)


def told(config, canvas: Canvas, dtype: str = "float32"):
    return estimate_sampling(config, ModelArguments(model_name_or_path=str(SHIPPED), dtype=dtype), canvas)


def small(dtype: str = "float32", **options) -> tuple[LlamaConfig, torch.nn.Module]:
    config = LlamaConfig(**SMALL | options)
    return config, bidirectional(LlamaForCausalLM(config)).eval().to(getattr(torch, dtype))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_published_checkpoints(name):
    model = model_on_meta(config_of(name), arguments(name))
    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[name]
    assert all(weight.is_meta for weight in model.parameters())


@pytest.mark.parametrize(
    "name, layers, experts, width", [("rnd1-30b-a3b", 48, 128, 768), ("llada2-mini", 19, 256, 512)]
)
def test_active_parameters_leave_out_the_experts_that_are_not_chosen(name, layers, experts, width):
    found = mixture_of(model_on_meta(config_of(name), arguments(name)))
    assert (found.experts, found.chosen, found.parameters) == (experts, 8, layers * experts * 3 * 2048 * width)
    assert found.share(1) == 8 / experts and found.share(experts) == 1


@pytest.mark.parametrize(
    "name, layers, heads", [("llada-8b", 32, 32), ("dream-7b", 28, 4), ("rnd1-30b-a3b", 48, 4), ("llada2-mini", 20, 4)]
)
def test_the_kv_cache_by_its_formula(name, layers, heads):
    """2 tensors x layers x heads x 128 x rows x columns x 2 bytes; columns in steps of 64, and one of no position."""
    # few layers suffice for what one stores
    config = config_of(name)
    config.num_hidden_layers = 2
    found = estimate_sampling(config, arguments(name), canvas_of(batch=3, prompt=100, length=64))
    kept = {cost.cache: cost.bytes for cost in found.caches}
    per_layer = 2 * heads * 128 * 3 * (192 + 1) * 2
    assert kept[None] == 0 and kept["block"] == 2 * per_layer
    shifted = name in ("dream-7b", "rnd1-30b-a3b")  # the hidden state before each block is kept as well
    if name != "llada2-mini":
        assert kept["dual"] == 2 * per_layer + shifted * 3 * config.hidden_size * 2
    assert ("dual" in kept) == (name != "llada2-mini")  # it attends by blocks


@pytest.fixture
def peaks(monkeypatch) -> list[int]:
    """Live bytes at the peak of each step that runs, beside what lived before."""
    found, real = [], running.denoise_step

    def measured(*args):
        with LiveBytes() as memory:
            real(*args)
        found.append(memory.peak)

    monkeypatch.setattr(running, "denoise_step", measured)
    return found


@pytest.mark.parametrize(
    "batch, prompt, length, block, cfg_scale, dtype",
    [(1, 32, 16, 16, 0.0, "bfloat16"), (3, 48, 16, 8, 0.0, "float32"), (2, 32, 16, 8, 1.0, "bfloat16")],
)
def test_the_peak_of_a_step_is_the_measured_one(batch, prompt, length, block, cfg_scale, dtype, peaks, monkeypatch):
    """To the byte where the body has the peak: the same operators run, on tensors with data. Beside a canvas there are
    lists of its masks, which are read."""
    config, model = small(dtype)
    canvas = canvas_of(batch=batch, prompt=prompt, length=length, block=block, cfg_scale=cfg_scale)
    found = {cost.cache: cost for cost in told(config, canvas, dtype).caches}
    ids = torch.randint(5, 500, (batch, prompt), generator=torch.Generator().manual_seed(0))
    tokenizer = SimpleNamespace(mask_token_id=MASK, eos_token_id=EOS, pad_token_id=EOS, bos_token_id=EOS)
    common = dict(max_new_tokens=length, block_size=block, steps=length, cfg_scale=cfg_scale)

    generate(model, ids, steps=length, gen_length=length, block_length=block, mask_id=MASK, cfg_scale=cfg_scale)
    assert peaks[0] == max(peaks)
    assert 0 < peaks[0] - found[None].steps[0].memory <= 8 + 48 * batch * length
    assert len(peaks) == found[None].steps[0].times
    peaks.clear()
    FastDLLMSampler(model, tokenizer).sample(list(ids), FastDLLMSamplerConfig(**common, cache="dual", threshold=None))
    assert peaks[:2] == [step.memory for step in found["dual"].steps]
    assert len(peaks) == sum(step.times for step in found["dual"].steps)
    steps = {step.name: step for step in found["block"].steps}
    for as_on_a_gpu in (False, True):
        peaks.clear()
        with monkeypatch.context() as patch:
            if as_on_a_gpu:  # windows are planned without reading the state, so a few are wider than they must be
                patch.setattr(Planner, "passes", functools.partialmethod(_passes_on_a_gpu, Planner.passes))
            BD3LMSampler(model, tokenizer).sample(list(ids), BD3LMSamplerConfig(**common))
        assert len(peaks) == sum(step.times for step in steps.values())
        for number, name in ((0, "first of all"), (1, "other"), (block, "first of a block")):
            if name in steps:
                assert peaks[number] == steps[name].memory if as_on_a_gpu else peaks[number] <= steps[name].memory


def _passes_on_a_gpu(planner, real, state, step, *, exact):
    return real(planner, state, step, exact=False)


def test_where_the_head_has_the_peak_it_is_an_upper_bound(peaks):
    config, model = small(vocab_size=30_000)
    (step,) = told(config, canvas_of(prompt=0)).caches[0].steps
    generate(model, torch.zeros(1, 0, dtype=torch.int64), steps=32, gen_length=32, block_length=32, mask_id=MASK)
    assert max(peaks) <= step.memory <= max(peaks) + 32 * 30_000 * 4
    assert step.memory < 32 * 64 * 30_000  # never logits of a batch


def test_flops_and_bytes_by_their_formulae():
    config, model = small()
    canvas = canvas_of(batch=3, prompt=48, length=32, block=16)
    found = {cost.cache: cost for cost in told(config, canvas).caches}
    table = 512 * 96
    matrices = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2) - 2 * table
    everything = sum(weight.numel() for weight in model.parameters())
    (step,) = found[None].steps
    attention, head = 4 * 3 * 3 * 96 * 80 * 80, 2 * 3 * 16 * table
    # transformers 4 computes the angles of the rotary embedding, 12 for each position, as a product
    assert step.flops - (2 * 3 * 80 * matrices + attention + head) in (0, 2 * 12 * 80)
    assert step.read == 4 * (everything - table + 3 * 80 * 96)
    other = found["dual"].steps[1]
    assert other.flops - (2 * 3 * 16 * matrices + 4 * 3 * 3 * 96 * 16 * 80 + head) in (0, 2 * 12 * 3 * 16)
    assert other.read == 4 * (everything - table + 3 * 16 * 96) + 3 * 3 * 2 * 48 * 80 * 4
    assert found[None].flops == 32 * step.flops
    assert found["dual"].flops == 2 * found["dual"].steps[0].flops + 30 * other.flops
    many = {cost.cache: cost for cost in told(config, replace(canvas, batch=3 * 10**9)).caches}  # takes no memory
    assert many["dual"].bytes == 10**9 * found["dual"].bytes


def test_few_tokens_read_few_experts():
    config = config_of("rnd1-30b-a3b")
    config.num_hidden_layers = 2
    few, many = (
        estimate_sampling(config, arguments("rnd1-30b-a3b"), canvas_of(prompt=0, length=n, block=n)).caches[0].steps[0]
        for n in (4, 64)
    )
    routed = 2 * 128 * 3 * 2048 * 768 * 2
    assert many.read - few.read == routed * 3 // 4 + 60 * 2048 * 2  # 4 x 8 of 128 experts, and rows of the embedding


def test_a_model_without_a_kv_cache():
    size = dict(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    assert [cost.cache for cost in told(ModernBertConfig(**size, pad_token_id=1), canvas_of()).caches] == [None]
    with pytest.raises(ValueError, match="must fit the model's 512 positions, got 600"):
        told(BertConfig(**size), canvas_of(prompt=568))


def test_a_forward_that_asks_for_values_is_refused(monkeypatch):
    def forward(self, input_ids, **_):
        return self.embed_tokens(input_ids[:, : int(input_ids.sum())])

    monkeypatch.setattr("transformers.LlamaModel.forward", forward)
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot be estimated under sdpa attention"):
        told(LlamaConfig(**SMALL), canvas_of())


def test_live_bytes_follow_views_and_deletions():
    with LiveBytes() as memory:
        x = torch.zeros(4, 4)
        y = x[1:].view(-1)
        z = y + 1
        del x
        assert memory.live == 64 + 48  # the view keeps all of x
        del y
        assert memory.live == 48
        z += 1
    assert memory.peak == 64 + 48


def test_the_command_with_a_configuration_alone(capsys):
    words = ["generate", "--dry-run", "--model", str(CONFIGS / "llada2-mini"), "--dtype", "bfloat16"]
    assert main([*words, "--gen-length", "64", "--block-length", "32"]) == 0
    out = capsys.readouterr().out
    assert "llada2 (glm4_moe), 16,255,638,528 parameters, 1,432,968,192 of them active for a token" in out
    assert "30.28 GiB in bfloat16" in out and "block" in out and "first of a block" in out
    assert main(words) == 2  # 64 tokens in one block
    assert "block_length must be 32, by which the model attends, got 64" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["Hi", "--dry-run"], "--dry-run takes no question"),
        ([], "expected a question, got none"),
        (["Hi", "--batch-size", "2"], "--batch-size needs --dry-run"),
        (["Hi", "--prompt-length", "2"], "--prompt-length needs --dry-run"),
        (["--dry-run", "--batch-size", "0"], "batch must be at least 1, got 0"),
        (["--dry-run", "--prompt-length", "-1"], "prompt must be at least 0, got -1"),
        (["--dry-run", "--steps", "0"], "steps must be at least 1, got 0"),
        (
            ["--dry-run", "--prompt-length", str(10**21)],
            f"an estimate takes rows of at most {2**24} tokens, got {10**21 + 64}",
        ),
        (
            ["--dry-run", "--batch-size", str(10**18)],
            f"an estimate takes at most {2**38} tokens a forward, got {10**18} rows",
        ),
        (["--dry-run", "--entropy-bound", "1"], "has no entropy_bound, so --entropy-bound must not be given"),
        (["--dry-run", "--model", "/no/such"], "there is no folder /no/such"),
        (["--dry-run", "--model", "{empty}"], "must hold a model, got no config.json"),
        (["--dry-run", "--model", "{broken}"], "cannot be"),
    ],
)
def test_what_cannot_be_estimated_is_said_in_a_line(words, said, tmp_path, capsys):
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llada", ')
    words = [word.format(empty=tmp_path / "empty", broken=tmp_path / "broken") for word in words]
    assert main(["generate", *words]) == 2
    out, err = capsys.readouterr()
    assert said in err and "Traceback" not in err and not out


PEAK = """
import resource, sys
from dllm.cli import main

assert main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_large_model_takes_little_memory(tmp_path):
    """Six of its 48 layers, of which one alone has 1.1 GiB. What the process is forked with counts as well."""
    config = json.loads((CONFIGS / "rnd1-30b-a3b" / "config.json").read_text()) | {"num_hidden_layers": 6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "peak.py").write_text(PEAK)
    words = ["generate", "--dry-run", "--model", tmp_path, "--dtype", "bfloat16"]
    done = programs.run(tmp_path / "peak.py", *words)
    *told, peak = done.stdout.splitlines() or [""]
    assert any("8.12 GiB in bfloat16" in line for line in told), done.stdout + done.stderr
    assert int(peak) < 2 * 2**20  # KiB
