"""What a cached call is given and leaves: stops, texts to fill, batches, memory, compiled models, wrong input."""

import copy
import functools

import pytest
import torch
import transformers

from dllm.core import samplers
from dllm.core.schedulers import LinearAlphaScheduler
from dllm.fast.sampling import cache as caches
from dllm.fast.sampling import step as steps
from dllm.fast.sampling.step import denoise_step
from tests import reference_samplers as judges
from tests.causal_models import EOS, causal_model
from tests.models import MASK_ID, favour, tiny
from tests.reference_samplers.row import Reading, blocks
from tests.reference_samplers.rules import surest
from tests.samplers.test_cached import TOKENIZER, BlockRow, bd3lm, check, fast_dllm, llada2, prompts
from tests.watch import SyncWatch

pytestmark = pytest.mark.usefixtures("one_thread")

CACHED = {
    "bd3lm": (samplers.BD3LMSampler, dict(steps=14)),
    "bd3lm, shifted": (samplers.BD3LMSampler, dict(steps=14, right_shift_logits=True)),
    "bd3lm, guided": (samplers.BD3LMSampler, dict(steps=14, cfg_scale=0.5)),
    "prefix": (samplers.FastDLLMSampler, dict(cache="prefix", threshold=0.2)),
    "dual": (samplers.FastDLLMSampler, dict(cache="dual", threshold=0.2)),
    "dual, guided": (samplers.FastDLLMSampler, dict(cache="dual", threshold=0.2, cfg_scale=0.5)),
    "prefix, shifted": (samplers.FastDLLMSampler, dict(cache="prefix", threshold=0.2, right_shift_logits=True)),
    "dual, shifted, guided": (
        samplers.FastDLLMSampler,
        dict(cache="dual", threshold=0.2, right_shift_logits=True, cfg_scale=0.5),
    ),
    "llada2": (samplers.LLaDA2Sampler, dict(cache=True, threshold=0.2, steps=8)),
    "llada21": (samplers.LLaDA21Sampler, dict(cache=True, threshold=0.2, steps=8, edit_threshold=0.3, edit_steps=4)),
}
every_cache = pytest.mark.parametrize("name", CACHED)


def call(name, model, rows, **changed):
    kind, settings = CACHED[name]
    return kind(model, TOKENIZER).sample(rows, **(dict(max_new_tokens=20, block_size=8) | settings | changed))


@every_cache
def test_a_row_alone(name, device):
    """Finished rows leave, and those that stay keep what is theirs."""
    model = causal_model(device=str(device), favoured=3.0)
    rows = prompts(model, (5, 1, 8, 11, 2, 3))
    options = dict(temperature=0.8, return_dict=True, stop_at_eos=True)
    both = call(name, model, rows, seed=3, **options)
    assert len(set(both.stats.row_forwards)) > 1
    for i, row in enumerate(rows):
        alone = call(name, model, [row], seed=3 + i, **options)
        assert torch.equal(both.sequences[i, : len(row) + 20], alone.sequences[0])
        assert both.stats.row_forwards[i] == alone.stats.forwards


@every_cache
def test_no_step_lists_more_positions_than_the_head_has_room_for(name, monkeypatch):
    """A block in each row, also of a model that leaves masks and where committed tokens are replaced."""
    rooms, counts = [], []

    def room(policy, rows, of=steps.head_room):
        rooms.append(of(policy, rows))
        return rooms[-1]

    def propose(split, hidden, candidates, *rest, of=steps.propose):
        counts.append(int(candidates.count))
        return of(split, hidden, candidates, *rest)

    monkeypatch.setattr(steps, "head_room", room)
    monkeypatch.setattr(steps, "propose", propose)
    model = favour(copy.deepcopy(causal_model()), MASK_ID, 26.0)
    options = dict(temperature=1.0, stop_at_eos=False, return_dict=True)
    found = call(name, model, prompts(model, (8, 8, 8)), seed=3, **options)
    assert found.stats.masks_left > 0 or name.startswith("bd3lm")  # whose masks are not chosen here
    assert all(count <= room for count, room in zip(counts, rooms, strict=True))
    assert max(counts) == max(rooms) == 3 * 8


STOPPING = {
    "bd3lm": (samplers.BD3LMSampler, bd3lm, dict(steps=20)),
    "dual": (samplers.FastDLLMSampler, fast_dllm, dict(cache="dual", threshold=0.2)),
    "llada21": (
        samplers.LLaDA21Sampler,
        functools.partial(llada2, BlockRow),
        dict(steps=6, edit_threshold=0.3, edit_steps=3, threshold=0.3),
    ),
}


@pytest.mark.parametrize("favoured", [2.0, 5.0])
@pytest.mark.parametrize("name", STOPPING)
def test_stop_at_eos(name, favoured, device):
    model = causal_model(device=str(device), favoured=favoured)
    kind, judge, settings = STOPPING[name]
    settings = settings | dict(max_new_tokens=24, block_size=8, temperature=0.8)
    options = {"llada21": dict(cache=True)}.get(name, {})
    judge = functools.partial(judge, eos_token_id=EOS, **settings)
    out = check(kind(model, TOKENIZER), judge, prompts(model), stop_at_eos=True, **options, **settings)
    assert out.stats.useful_tokens < out.stats.tokens


@pytest.mark.parametrize("cache", [True, False])
def test_bd3lm_fills_texts(cache, device):
    """Blocks without masks, between others and at both ends: what follows sees them as they are. No first block is all
    masks: those see nothing but masks, and are all equally sure."""
    model, size = causal_model(device=str(device)), 4
    rows = prompts(model, (22, 9, 16, 6, 8))
    for row, columns in zip(rows, ([9, 10, 17, 18, 19], [0, 3, 8], [*range(1, 16)], [], [7]), strict=True):
        for column in columns:
            row[column] = MASK_ID
    settings = dict(seed=7, block_size=size, steps=11, temperature=0.5, cache=cache)
    out = samplers.BD3LMSampler(model, TOKENIZER).infill(rows, **settings)
    for i, row in enumerate(rows):
        reading = Reading(temperature=0.5)
        judge = BlockRow(
            model, torch.tensor(row), generated_from=0, mask_id=MASK_ID, seed=7 + i, eos_token_id=None, reading=reading
        )
        judge.size, grid = size, list(blocks(0, len(row), size))
        for block, start, end in grid:
            masks = len(judge.masks(start, end))
            for step, k in enumerate(judges.schedule_b(masks, -(-11 // len(grid)), LinearAlphaScheduler())):
                look = judge.look(block, step, end)
                judge.commit(look, surest(look.surety, look.eligible, k))
        assert torch.equal(out[i, : len(row)].cpu(), judge.canvas)


@every_cache
def test_odd_shapes(name, device):
    model = causal_model(device=str(device))
    assert call(name, model, []).shape == (0, 0)
    one = call(name, model, [[7, 8]], max_new_tokens=1, seed=0)
    assert one.shape == (1, 3) and one[0, :2].tolist() == [7, 8] and int(one[0, 2]) != MASK_ID
    both = call(name, model, [[], [9]], max_new_tokens=5, block_size=2, seed=0)
    assert torch.equal(both[0, :5], call(name, model, [[]], max_new_tokens=5, block_size=2, seed=0)[0])
    assert not bool((both == MASK_ID).any())
    assert call(name, model, [[5] * 44], max_new_tokens=20).shape == (1, 64)  # as many as the model has positions


@every_cache
def test_a_model_that_commits_masks(name, device):
    """Earlier blocks are final, holes and all; a call ends."""
    model = causal_model(device=str(device), favoured=0.01)
    before = model.get_output_embeddings().bias.detach().clone()
    favour(model, MASK_ID, 26.0 if "guided" in name else 24.0)
    try:
        out = call(name, model, prompts(model), temperature=1.0, seed=5, return_dict=True)
    finally:
        model.get_output_embeddings().bias.data.copy_(before)
    assert bool((out.sequences == MASK_ID).any()) and out.stats.forwards < 200


@every_cache
def test_the_callback_and_the_history_agree(name, device):
    steps, model = [], causal_model(device=str(device))
    out = call(name, model, prompts(model), seed=0, return_dict=True, on_step=steps.append, stop_at_eos=False)
    assert len(steps) == out.stats.forwards == len(out.histories) - 1
    before = out.histories[0]
    for step, canvas in zip(steps, out.histories[1:], strict=True):
        assert torch.equal(step.canvas, canvas) and step.step < step.steps and step.block < step.blocks
        changed = canvas != before
        assert name == "llada21" or bool((before[changed] == MASK_ID).all())
        assert bool(step.confidence[changed].isfinite().all())
        before = canvas
    assert torch.equal(before, out.sequences)


def test_memory_is_used_again(device):
    model = causal_model(device=str(device))
    caches.SPARE.clear()
    out = call("dual", model, prompts(model), return_dict=True)
    (free,) = caches.SPARE._free
    assert out.stats.cache_bytes == free.bytes == 2 * 2 * 4 * 2 * 65 * 8 * 4  # k and v, layers, rows, heads, ...
    free.keys[0].fill_(torch.nan)
    again = call("dual", model, prompts(model), return_dict=True)
    assert caches.SPARE._free == [free] and torch.equal(again.sequences, out.sequences)
    with pytest.raises(KeyError):
        call("bd3lm", model, prompts(model), on_step=lambda _: {}["stop"])
    assert caches.SPARE._free == [free]  # given back all the same

    def nested(_):
        assert free not in caches.SPARE._free
        call("dual", model, prompts(model), seed=8)

    outer = call("dual", model, prompts(model), on_step=nested)
    assert torch.equal(outer, out.sequences)


def test_changed_weights_are_used(device):
    model = causal_model("Qwen2", str(device), favoured=0.02)
    before = call("bd3lm", model, prompts(model), seed=2)
    weight = model.model.layers[0].mlp.up_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(-1)
    changed = call("bd3lm", model, prompts(model), seed=2)
    assert torch.equal(changed, call("bd3lm", model, prompts(model), seed=2, cache=False))
    assert not torch.equal(changed, before)
    weight.data = kept
    assert torch.equal(call("bd3lm", model, prompts(model), seed=2), before)


@pytest.mark.parametrize("name", ["bd3lm", "dual"])
def test_other_precisions(name, device):
    model = causal_model(device=str(device), dtype=torch.bfloat16)
    out = call(name, model, prompts(model), return_dict=True)
    assert out.stats.cache_bytes == 2 * 2 * 4 * 2 * 65 * 8 * 2 and not bool((out.sequences == MASK_ID).any())
    model = causal_model(device=str(device))
    with torch.autocast(device.type, torch.bfloat16):
        out = call(name, model, prompts(model), return_dict=True)
    assert not bool((out.sequences == MASK_ID).any())


@pytest.mark.parametrize(
    "name", ["bd3lm", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("prefix", "dual", "llada2"))]
)
def test_a_compiled_model(name, device):
    model = causal_model(device=str(device), num_hidden_layers=1)
    compiled, options = torch.compile(model, backend="eager"), dict(seed=4, temperature=0.5, max_new_tokens=12)
    expected = call(name, model, prompts(model, (5, 8)), **options)
    assert torch.equal(call(name, compiled, prompts(model, (5, 8)), **options), expected)


@every_cache
def test_a_step_waits_for_nothing(name, monkeypatch):
    """On a CPU the host reads where rows stand between the steps; the steps themselves read nothing."""
    seen = []

    def watched(*arguments):
        with SyncWatch() as watch:
            denoise_step(*arguments)
        seen.extend(watch.seen)

    monkeypatch.setattr("dllm.fast.sampling.running.denoise_step", watched)
    model = causal_model()
    call(name, model, prompts(model))
    assert not seen


@pytest.mark.parametrize("name", ["bd3lm", "llada2", "dual"])
def test_a_model_that_keeps_no_cache(name, device):
    model = tiny("modernbert").to(device)
    with pytest.raises(ValueError, match=r"past_key_values|keeps no cache"):
        call(name, model, [[7, 8]], max_new_tokens=4)  # as many as its window has


@pytest.mark.parametrize("name", ["bd3lm", "dual", "prefix, shifted"])
def test_gradient_checkpointing_drops_the_cache(name):
    """transformers then hands layers no `past_key_values`, though only while the model trains."""
    model, rows = copy.deepcopy(causal_model()), prompts(causal_model(), (5, 5))
    expected = call(name, model, rows)
    model.gradient_checkpointing_enable()
    assert torch.equal(call(name, model, rows), expected)
    model.train()
    with pytest.raises(ValueError, match=r"keeps no cache.*eval\(\)"):
        call(name, model, rows)
    assert torch.equal(call(name, model.eval(), rows), expected)


class Bare(torch.nn.Module):
    """A model without a configuration around another."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def forward(self, **given):
        return self.model(**given)


@every_cache
def test_a_model_without_a_configuration(name):
    model = causal_model()
    assert torch.equal(call(name, Bare(model), prompts(model), seed=1), call(name, model, prompts(model), seed=1))


@pytest.mark.parametrize("name, changed", [("bd3lm", {}), ("bd3lm", dict(cache=False)), ("dual", {})])
@pytest.mark.parametrize("kind, window", [("Mistral", 24), ("Mistral", None), ("Gemma3Text", 24)])
def test_a_mask_would_replace_a_sliding_window(kind, window, name, changed):
    """Rows that fit a window lose nothing to a mask of four dimensions; longer ones would see more than the model was
    trained to."""
    size = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, head_dim=8)
    size |= dict(vocab_size=97, num_key_value_heads=2, max_position_embeddings=64, sliding_window=window)
    config = getattr(transformers, f"{kind}Config")(**size)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert call(name, model, [[7, 8, 9, 10]], **changed).shape == (1, 24)
    if window is None:
        assert call(name, model, [[7, 8, 9, 10, 11]], **changed).shape == (1, 25)
        return
    with pytest.raises(ValueError, match=r"see at most 24 .*got rows of 25"):
        call(name, model, [[7, 8, 9, 10, 11]], **changed)


BAD = [
    (samplers.BD3LMSampler, dict(block_size=None), ValueError, "block_size must be a number, as blocks are"),
    (samplers.BD3LMSampler, dict(steps_per_block=0), ValueError, "steps_per_block must be at least 1, got 0"),
    (samplers.LLaDA2Sampler, dict(cache=True, block_size=None), ValueError, "block_size must be a number beside a c"),
    (samplers.LLaDA21Sampler, dict(edit_steps=0), ValueError, "edit_steps must be at least 1, got 0"),
    (samplers.LLaDA21Sampler, dict(edit_threshold=-1.0), ValueError, "edit_threshold must be"),
    (samplers.FastDLLMSampler, dict(cache="suffix"), ValueError, "cache must be one of prefix, dual, got 'suffix'"),
    (samplers.FastDLLMSampler, dict(factor=1.0), ValueError, "at most one of threshold and factor, got 0.9 and 1.0"),
    (samplers.FastDLLMSampler, dict(threshold=None, factor=0.0), ValueError, "factor must be above 0, got 0.0"),
]


@pytest.mark.parametrize("kind, options, error, message", BAD, ids=[row[-1] for row in BAD])
def test_bad_settings(kind, options, error, message):
    model = causal_model()
    with pytest.raises(error, match=message):
        kind(model, TOKENIZER).sample([[7, 8]], **(dict(max_new_tokens=6) | options))


def test_logits_that_are_not_finite():
    model = causal_model("Qwen2", favoured=0.03)
    weight = model.get_output_embeddings().weight
    kept = weight.data.clone()
    weight.data.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="row 0: no logit was finite at step 0"):
        call("bd3lm", model, [[7, 8]])
    weight.data.copy_(kept)
    assert not bool((call("bd3lm", model, [[7, 8]]) == MASK_ID).any())
