"""Whatever the attention: the same tokens, or a refusal that names the rule. Flash attention has a stand-in here."""

import functools
from types import SimpleNamespace

import pytest
import torch
import transformers

from dllm.core import samplers
from dllm.fast import generate
from dllm.fast.attention import is_flash
from dllm.fast.head.split import SplitModel
from dllm.fast.sampling import unpadded
from tests.causal_models import causal_model
from tests.flash_stand_in import register
from tests.models import MASK_ID, left_padded, tiny
from tests.samplers.test_cached import TOKENIZER, prompts
from tests.watch import SyncWatch

pytestmark = pytest.mark.usefixtures("one_thread")

V5 = int(transformers.__version__.split(".")[0]) >= 5
FLASH = register()
LENGTHS = (5, 1, 8)
# before 5, BERT and RoBERTa know eager and sdpa only, and ModernBERT keeps a table of its own without flex_attention
BERTS = ("bert", "modernbert", "roberta")
MASKED = ("sdpa", "flex_attention") if V5 else ("sdpa",)
needs_v5 = pytest.mark.skipif(not V5, reason="transformers 5 hands flash attention's arguments through these models")


@pytest.fixture
def attention():
    """Sets the attention of a model that others use too, for as long as a test runs."""
    before = []

    def use(model, name):
        before.append((model.config, model.config._attn_implementation))
        model.config._attn_implementation = name
        return model

    # flex_attention as torch defines it, not compiled: seconds instead of minutes
    with torch.compiler.set_stance("force_eager"):
        yield use
    for config, name in reversed(before):
        config._attn_implementation = name


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("family", BERTS)
def test_generate(family, name, attention):
    model = tiny(family)
    prompt, mask = left_padded(model, list(LENGTHS))
    call = functools.partial(
        generate, model, prompt, 8, 8, 4, 0.7, remasking="low_confidence", attention_mask=mask, mask_id=MASK_ID, seed=3
    )
    attention(model, "eager")
    expected = call()
    attention(model, name)
    assert torch.equal(call(), expected)


CALLS = {
    "mdlm": (samplers.MDLMSampler, dict(steps=6)),
    "mdlm, guided": (samplers.MDLMSampler, dict(steps=6, cfg_scale=0.5)),
    "bd3lm": (samplers.BD3LMSampler, dict(steps=6)),
    "bd3lm, recomputed": (samplers.BD3LMSampler, dict(steps=6, cache=False)),
    "dual": (samplers.FastDLLMSampler, dict(threshold=0.2)),
    "prefix, shifted": (samplers.FastDLLMSampler, dict(cache="prefix", threshold=0.2, right_shift_logits=True)),
}


def call(name, model, rows, **options):
    kind, settings = CALLS[name]
    given = dict(max_new_tokens=12, block_size=4, temperature=0.6, seed=5) | settings | options
    return kind(model, TOKENIZER).sample(rows, **given)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("other", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
@pytest.mark.parametrize("name", CALLS)
def test_causal_architectures(name, family, other, attention):
    model = causal_model(family)
    rows = prompts(model, LENGTHS)
    attention(model, "eager")
    expected = call(name, model, rows)
    attention(model, other)
    assert torch.equal(call(name, model, rows), expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("family", BERTS)
def test_bert_like_models(family, name, attention):
    model = tiny(family)
    rows = prompts(model, LENGTHS)
    attention(model, "eager")
    expected = call("mdlm", model, rows)
    attention(model, name)
    assert torch.equal(call("mdlm", model, rows), expected)


# without padding


@pytest.mark.parametrize("name", ["mdlm", "mdlm, guided"])
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_rows_of_causal_architectures_run_as_one(family, name, attention):
    model = causal_model(family)
    rows = prompts(model, LENGTHS)
    expected = call(name, model, rows, return_dict=True)
    attention(model, FLASH)
    seen = []
    handle = model.register_forward_pre_hook(lambda *given: seen.append(given[2]["input_ids"].shape), with_kwargs=True)
    got = call(name, model, rows, return_dict=True)
    handle.remove()
    assert torch.equal(got.sequences, expected.sequences) and all(map(torch.equal, got.histories, expected.histories))
    assert got.stats.note.endswith(f"rows run without their padding under {FLASH}")
    columns = sum(LENGTHS) + 12 * len(LENGTHS)
    assert seen[-1] == (1, columns * (2 if "guided" in name else 1))


@needs_v5
@pytest.mark.parametrize("family", ["modernbert", "bert"])
def test_rows_of_bert_like_models_run_as_one(family, attention):
    """ModernBERT's second layer sees 6 columns to each side: of the row itself, not of its neighbour."""
    model = tiny(family)
    rows = prompts(model, LENGTHS)
    expected = call("mdlm", model, rows, return_dict=True)
    attention(model, FLASH)
    got = call("mdlm", model, rows, return_dict=True)
    assert torch.equal(got.sequences, expected.sequences) and "without their padding" in got.stats.note
    prompt, mask = left_padded(model, list(LENGTHS))
    given = dict(attention_mask=mask, mask_id=MASK_ID, seed=3, temperature=0.7, return_stats=True)
    got, stats = generate(model, prompt, 8, 8, 4, **given)
    attention(model, "sdpa")
    assert torch.equal(got, generate(model, prompt, 8, 8, 4, **given)[0]) and "without their padding" in stats.note


def test_rows_that_leave(attention):
    """A row that has finished takes its columns with it."""
    model = causal_model(favoured=3.0)
    rows = prompts(model, (5, 1, 8, 11, 2))
    options = dict(max_new_tokens=24, block_size=8, steps=24, temperature=0.8, return_dict=True, stop_at_eos=True)
    expected = call("mdlm", model, rows, **options)
    attention(model, FLASH)
    widths = []
    handle = model.register_forward_pre_hook(
        lambda *given: widths.append(given[2]["input_ids"].numel()), with_kwargs=True
    )
    got = call("mdlm", model, rows, **options)
    handle.remove()
    assert torch.equal(got.sequences, expected.sequences)
    assert got.stats.row_forwards == expected.stats.row_forwards and len(set(got.stats.row_forwards)) > 1
    assert widths[-1] < sum(map(len, rows)) + 24 * len(rows) == max(widths)


@torch.no_grad()
@pytest.mark.parametrize("family", ["Llama", *(("bert", "modernbert") if V5 else ())])
def test_a_mask_of_rows_says_the_same(family, attention):
    """One long row under sdpa: with positions that begin anew and a mask that separates its rows (and, in ModernBERT's
    sliding layer, a window inside them) against each row alone."""
    model = causal_model() if family == "Llama" else tiny(family)
    rows = [torch.tensor(row) for row in prompts(model, (9, 3, 12))]
    number = torch.cat([torch.full_like(row, i) for i, row in enumerate(rows)])
    position = torch.cat([torch.arange(len(row)) for row in rows])
    together = (number[:, None] == number)[None, None]
    mask = together
    if family == "modernbert":
        near = (position[:, None] - position).abs() <= model.config.sliding_window
        mask = {"full_attention": together, "sliding_attention": together & near}
    given = dict(input_ids=torch.cat(rows)[None], position_ids=position[None])
    by_mask = model(**given, attention_mask=mask).logits[0]
    alone = torch.cat([model(input_ids=row[None]).logits[0] for row in rows])
    scale = torch.finfo(torch.float32).eps * alone.abs().max()
    attention(model, FLASH)
    lengths = torch.tensor([len(row) for row in rows])
    cells = unpadded.real_cells((torch.arange(12) < lengths[:, None]).long())
    padded = torch.zeros(3, 12, dtype=torch.int64).flatten().index_copy(0, cells, torch.cat(rows)).view(3, 12)
    split = SplitModel(model, rows[0][None])
    real = (torch.arange(12) < lengths[:, None]).long()
    ours = split.logits(unpadded.run(split, padded, real, cells)[real.bool()])
    for got in (by_mask, ours):
        assert (got - alone).abs().max() < 64 * scale
    assert torch.equal(ours.argmax(-1), alone.argmax(-1))


@pytest.mark.parametrize("equal", [True, False])
def test_what_is_said_of_padding(equal, attention):
    model = attention(causal_model(), FLASH)
    rows = prompts(model, (5, 5) if equal else (5, 4))
    note = call("mdlm", model, rows, return_dict=True).stats.note
    assert ("padding" in note) == (not equal)
    attention(model, "sdpa")
    assert "padding" not in call("mdlm", model, prompts(model, (5, 4)), return_dict=True).stats.note


@needs_v5
def test_a_model_whose_positions_begin_elsewhere(attention):
    """RoBERTa counts from its padding token's number on, and leaves padding tokens out: its rows keep their padding."""
    model = tiny("roberta")
    rows = prompts(model, LENGTHS)
    expected = call("mdlm", model, rows)
    attention(model, FLASH)
    got = call("mdlm", model, rows, return_dict=True)
    assert torch.equal(got.sequences, expected)
    assert got.stats.note.endswith("with their padding, because the positions of RobertaForMaskedLM do not begin at 0")


class Other(torch.nn.Module):
    """A model around another, which loses some of what it is given."""

    def __init__(self, model, *lost):
        super().__init__()
        self.model, self.config, self.lost = model, model.config, lost

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def forward(self, input_ids, attention_mask=None, **given):
        if "any" in self.lost and given:
            raise TypeError(f"unexpected {next(iter(given))}")
        given = {name: value for name, value in given.items() if not name.startswith(self.lost)}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **given)


@pytest.mark.parametrize(
    "lost, why",
    [
        ("any", "Other takes no packed rows: unexpected position_ids"),
        (("cu_seq", "max_length"), "packed rows see each other in Other"),
        ("position_ids", "Other ignores position_ids"),
    ],
)
def test_models_that_cannot(lost, why, attention):
    model = causal_model()
    rows = prompts(model, LENGTHS)
    expected = call("mdlm", model, rows)
    other = Other(attention(model, FLASH), *([lost] if isinstance(lost, str) else lost))
    got = call("mdlm", other, rows, return_dict=True)
    assert torch.equal(got.sequences, expected) and got.stats.note.endswith(f"with their padding, because {why}")


class Distances(Other):
    """A model that minds how far positions are from each other, to the last bit, and not where a row begins."""

    def forward(self, input_ids, cu_seq_lens_q=None, **given):
        if cu_seq_lens_q is not None:
            position, starts = given["position_ids"], cu_seq_lens_q[:-1].long()
            origin = position[0, starts].repeat_interleave(cu_seq_lens_q.diff())
            given |= dict(position_ids=position - origin, cu_seq_lens_q=cu_seq_lens_q)
        return self.model(input_ids=input_ids, **given)


def test_a_model_that_minds_distances(attention):
    """Rotary embeddings are of this kind, but for rounding."""
    model = causal_model()
    rows = prompts(model, LENGTHS)
    expected = call("mdlm", model, rows)
    got = call("mdlm", Distances(attention(model, FLASH)), rows, return_dict=True)
    assert torch.equal(got.sequences, expected) and "without their padding" in got.stats.note


# what flash attention cannot be told


@pytest.mark.parametrize("name", ["dual", "prefix, shifted"])
def test_beside_a_cache_rows_of_one_length_need_no_mask(name, attention):
    model = causal_model()
    rows = prompts(model, (6, 6, 6))
    expected = call(name, model, rows)
    attention(model, FLASH)
    assert torch.equal(call(name, model, rows), expected)
    assert torch.equal(call(name, model, rows[:1]), expected[:1])


@pytest.mark.parametrize("name", ["bd3lm", "bd3lm, recomputed", "dual", "prefix, shifted"])
def test_masks_that_flash_attention_does_not_take(name, attention):
    model, calls = attention(causal_model(), FLASH), []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    rule = r"need a mask of four dimensions" if "bd3lm" in name else "cache rows must be of one length"
    with pytest.raises(ValueError, match=rf"{rule}.*{FLASH}.*sdpa, eager or flex_attention"):
        call(name, model, prompts(model, LENGTHS))
    handle.remove()
    assert not calls


def test_which_attention_is_flash():
    def named(name):
        return is_flash(SimpleNamespace(config=SimpleNamespace(_attn_implementation=name)))

    assert named("flash_attention_2") and named("flash_attention_3") and named("kernels-community/vllm-flash-attn3")
    assert not named("sdpa") and not named("flex_attention") and not named(None) and not is_flash(torch.nn.Linear(1, 1))


def test_nothing_waits_where_rows_run_as_one():
    """Their ends are found on the device; how long they are together is the shape of `cells`."""
    mask = (torch.arange(6) < torch.tensor([[6], [0], [4]])).long()
    tokens = torch.arange(36).view(6, 6)  # two canvases of three rows
    cells, given = unpadded.real_cells(mask), []

    def body(tokens, attention_mask, read, **context):
        given.append((tokens, attention_mask, context))
        return tokens[..., None] * torch.tensor([1.0, 2.0])

    with SyncWatch() as watch:
        out = unpadded.run(SimpleNamespace(body=body, model=torch.nn.Linear(1, 1)), tokens, mask, cells)
    assert not watch.seen
    ((packed, attention_mask, context),) = given
    assert packed.tolist() == [[*range(6), *range(12, 16), *range(18, 24), *range(30, 34)]] and attention_mask is None
    assert context["position_ids"].tolist() == [[*range(6), *range(4)] * 2]
    assert context["cu_seq_lens_q"].tolist() == [0, 6, 6, 10, 16, 16, 20]
    real = mask.bool().repeat(2, 1)
    assert torch.equal(out[..., 0], torch.where(real, tokens, 0).float()) and torch.equal(out[..., 1], 2 * out[..., 0])
