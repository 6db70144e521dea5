"""The judges of cached samplers are judged: by hand on fake models, and on causal architectures against a transformer
written out in float64 and against transformers' own cache."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers

from dllm.models import bidirectional
from dllm_kernels.testing import assert_no_worse, operand_rounding
from tests.reference_loop import _log_softmax
from tests.reference_samplers import (
    bd3lm,
    fast_dllm,
    llada,
    llada2,
    llada2_block_causal,
    llada21,
    mdlm_sample,
    threshold_decode,
)
from tests.reference_samplers.views import BlockCausal, Kept
from tests.test_bidirectional import FAMILIES, tiny, written_out
from tests.test_reference_loop import MASK, Table, sure
from tests.test_reference_samplers import EOS, FOUR, ROW, canvases, order, wandering

M = MASK
pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = [7, 30, 12, 55, 9, 41]
LLAMA_MASK = 3
GREEDY = dict(mask_id=LLAMA_MASK, suppress_tokens=[LLAMA_MASK])
DRAWN = dict(**GREEDY, seed=5, temperature=0.8)


class Deaf(Table):
    """A table that takes a mask and positions and does not heed them."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None):
        return super().forward(input_ids)


class Musing(Deaf):
    """What it says of a column depends on the token that stands there: `next_token` stands out by 9."""

    def __init__(self, next_token: dict[int, int]):
        super().__init__(torch.zeros(0, 5))
        self.next_token = next_token

    def forward(self, input_ids, **given):
        wish = [[self.next_token.get(token, token) for token in row] for row in input_ids.tolist()]
        return SimpleNamespace(logits=9.0 * torch.nn.functional.one_hot(torch.tensor(wish), 5))


def deaf(model: Table) -> Deaf:
    return Deaf(model.table, model.coupling)


# what the model is shown


def judge(got, plain, model, exact):
    """The error of logits [B, L, V] beside plain PyTorch's; `exact` gives the true ones of a float64 model."""
    model = model.double()
    truth, rounding = exact(model), operand_rounding(lambda: {"logits": exact(model)}, model.parameters())
    assert_no_worse({"logits": got}, {"logits": plain}, {"logits": truth}, rounding=rounding)
    return truth


@torch.no_grad()
@pytest.mark.parametrize("prepare", [lambda model: model, bidirectional], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_gets_exactly_the_mask_of_blocks(family, prepare):
    """A prompt of six in blocks of four is two and four; then four, and one of the last block."""
    model, given = prepare(tiny(family, "sdpa")), []
    model.model.layers[1].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: given.append((kwargs["attention_mask"], module.config._attn_implementation)),
        with_kwargs=True,
    )
    ids = torch.randint(5, 61, (1, 12), generator=torch.Generator().manual_seed(3))
    view = BlockCausal(model, prompt_length=6, block_size=4)
    view.end = 11
    logits = view(ids).logits
    label = torch.tensor([0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3])
    seen = label <= label[:, None]
    mask, attention = given[0]
    assert torch.equal(mask[0, 0] == 0, seen) and bool((mask[0, 0][~seen] == torch.finfo(torch.float32).min).all())
    assert attention == "eager" and model.config._attn_implementation == "sdpa"
    truth = written_out(model, ids[:, :11], seen[None])
    plain = tiny(family, "eager")(ids[:, :11], attention_mask=mask).logits
    assert (plain - truth).abs().max() < 1e-3 * truth.abs().max(), "another formula, not rounding"
    judge(logits[:, :11], plain, tiny(family, "sdpa"), lambda model: written_out(model, ids[:, :11], seen[None]))
    assert not logits[:, 11:].any(), "the last column does not exist yet"
    ids[0, 7] = 4
    changed = (view(ids).logits != logits)[0].any(-1)
    assert changed.tolist() == [False] * 6 + [True] * 5 + [False]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_all_columns_by_hand_are_the_bidirectional_model(family):
    model, ids = tiny(family), torch.tensor([PROMPT])
    by_hand, plain = Kept(model)(ids).logits, bidirectional(tiny(family, "eager"))(ids).logits
    judge(by_hand, plain, model, lambda model: written_out(model, ids, torch.ones(1, 6, 6).bool()))


@torch.no_grad()
@pytest.mark.parametrize("start, end", [(2, 5), (2, 8), (0, 8), (7, 8)])
@pytest.mark.parametrize("family", FAMILIES)
def test_kept_columns_are_those_of_transformers_cache(family, start, end):
    """First the whole row, then other tokens in a window; transformers is given the first run's keys and values of the
    columns outside."""
    before = torch.randint(5, 61, (1, 8), generator=torch.Generator().manual_seed(3))
    after = before.clone()
    after[:, start:end] = 60 - after[:, start:end]
    outside = [p for p in range(8) if not start <= p < end]

    def by_transformers(model):
        with_all = dict(use_cache=True, attention_mask=torch.zeros(1, 1, 8, 8, dtype=model.dtype))
        whole = model(before, past_key_values=transformers.DynamicCache(), **with_all)
        past = transformers.DynamicCache()
        for number in range(len(model.model.layers)):
            layer = whole.past_key_values.layers[number]
            past.update(layer.keys[:, :, outside], layer.values[:, :, outside], number)
        with_all["attention_mask"] = with_all["attention_mask"][:, :, : end - start]
        position_ids = torch.arange(start, end)[None]
        window = model(after[:, start:end], past_key_values=past, position_ids=position_ids, **with_all)
        return torch.cat([whole.logits[:, :start], window.logits, whole.logits[:, end:]], dim=1)

    kept = Kept(tiny(family))
    kept(before)
    kept.start, kept.end = start, end
    model = tiny(family, "eager")
    truth = judge(kept(after).logits, by_transformers(model), model, by_transformers)
    anew = Kept(tiny(family))(after).logits
    stale = (anew - truth).abs().max() > 0.01 * truth.abs().max()
    assert stale == (start > 0), "columns outside would have changed"


def test_what_never_ran_says_nothing():
    kept = Kept(tiny("Llama"))
    kept.start = 3
    with torch.no_grad():
        assert bool(kept(torch.tensor([PROMPT])).logits.isnan().all())  # its keys are seen by every column


def test_other_architectures_are_refused():
    with pytest.raises(AssertionError, match="LlamaForCausalLM"):
        Kept(wandering())
    with pytest.raises(AssertionError, match="sliding_attention"):
        Kept(tiny("Qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1))


# BD3LM


def test_bd3lm_by_hand():
    """A prompt of three in blocks of two; the second block does not exist while the first is written."""
    model = Deaf(sure((0, 0), (0, 0), (0, 0), (1, 2.0), (2, 3.0), (3, 9.0)))
    trace = bd3lm(model, [0, 1, 2], mask_id=M, max_new_tokens=3, block_size=2, steps=4)
    assert canvases(trace) == [
        [0, 1, 2, M, M, M],
        [0, 1, 2, M, 2, M],
        [0, 1, 2, 1, 2, M],
        [0, 1, 2, 1, 2, 3],
    ]
    assert model.seen == [[0, 1, 2, M, M], [0, 1, 2, M, 2], [0, 1, 2, 1, 2, M]]
    assert [(step.block, step.step) for step in trace.steps] == [(0, 0), (0, 1), (1, 0)]


def test_bd3lm_steps():
    def counts(**steps):
        trace = bd3lm(deaf(wandering()), [0], mask_id=M, max_new_tokens=10, block_size=4, **steps)
        return [len(step.committed) for step in trace.steps]

    assert counts(steps=4) == [2, 2, 2, 2, 1, 1]  # ceil(4 / 3) steps for each block
    assert counts(steps_per_block=1) == [4, 4, 2] and counts(steps=99, steps_per_block=3) == [1, 1, 2] * 2 + [1, 1]
    assert len(bd3lm(deaf(wandering()), [0, 1], mask_id=M, max_new_tokens=None, max_length=9).canvas) == 9
    assert bd3lm(deaf(wandering()), [0], mask_id=M, max_new_tokens=0).canvas.tolist() == [0]


@pytest.mark.parametrize(
    "options",
    [
        dict(temperature=0.7),
        dict(remasking="random", temperature=0.7),
        dict(stochastic_transfer=True),
        dict(cfg_scale=0.5, cfg_keep_tokens=[1]),
        dict(suppress_tokens=[2], begin_suppress_tokens=[1]),
        dict(right_shift_logits=True),
        dict(eos_token_id=EOS),
    ],
    ids=lambda options: "+".join(options),
)
def test_bd3lm_is_mdlm_to_a_model_that_does_not_look_ahead(options):
    arguments = dict(mask_id=M, seed=3, max_new_tokens=9, block_size=4, steps=7, **options)
    want = mdlm_sample(wandering(4), [0, 1], **arguments)
    got = bd3lm(deaf(wandering(4)), [0, 1], **arguments)
    if "eos_token_id" in options:  # it ends later, and the same
        assert torch.equal(got.canvas, want.canvas) and got.forwards > want.forwards
    else:
        assert canvases(got) == canvases(want) and order(got) == order(want)


@pytest.mark.parametrize("family", FAMILIES)
def test_bd3lm_of_one_block_without_a_prompt_is_mdlm(family):
    """A canvas of masks alone says the same everywhere, so places are drawn: confidences would tie."""
    model = bidirectional(tiny(family))
    for options in (dict(), dict(right_shift_logits=True)):
        arguments = dict(**DRAWN, max_new_tokens=9, block_size=9, steps=5, remasking="random", **options)
        assert canvases(bd3lm(model, [], **arguments)) == canvases(mdlm_sample(model, [], **arguments))


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_bd3lm_against_float64_from_the_weights(family, shift):
    """One token a step, decided by the written-out transformer on the padded row: two columns of padding that nobody
    sees, so that all blocks are whole. Its positions are off by two for all, which rotations do not notice."""
    model = tiny(family)
    trace = bd3lm(model, PROMPT, **GREEDY, max_new_tokens=7, block_size=4, steps=8, right_shift_logits=bool(shift))
    row = torch.tensor([0, 0, *PROMPT] + [LLAMA_MASK] * 7)
    for step in trace.steps:
        end = 12 + 4 * step.block
        ids = row[:end][None]
        column = torch.arange(ids.shape[1])
        seen = (column // 4 <= column[:, None] // 4) & (column >= 2) | column.diag_embed().bool()
        seen |= torch.eye(len(column)).bool()  # padding sees itself: softmax over nothing is no number
        log_p = written_out(model, ids, seen[None])[0].index_fill(1, torch.tensor(LLAMA_MASK), -torch.inf)
        log_p = log_p.log_softmax(-1)
        masked = [p for p in range(len(column)) if row[p] == LLAMA_MASK]
        best = max(masked, key=lambda p: float(log_p[p - shift].max()))
        row[best] = log_p[best - shift].argmax()
        assert row[2:].tolist() == step.canvas.tolist()
    assert trace.forwards == 7 and not bool((row == LLAMA_MASK).any())


# LLaDA 2.0 and 2.1


def test_llada2_is_the_same_rule():
    for threshold in (0.8, 0.9, 0.96):
        for steps in (2, 6):
            arguments = dict(mask_id=M, max_new_tokens=4, block_size=4, steps=steps, threshold=threshold)
            got = llada2_block_causal(Deaf(sure(*FOUR)), [0], **arguments)
            assert order(got) == order(llada2(Table(sure(*FOUR)), [0], **arguments))
    model = Deaf(sure(*FOUR))
    llada2_block_causal(model, [0], mask_id=M, max_new_tokens=4, block_size=2, threshold=0.0)
    assert model.seen == [[0, M, M], [0, 1, 2, M, M]]


def test_llada2_decides_as_bd3lm_does():
    """Nothing is above 1, nothing is edited: the surest one by one, as bd3lm with a step for each token."""
    model, arguments = tiny("Qwen3"), dict(**DRAWN, max_new_tokens=7, block_size=4)
    want = canvases(bd3lm(model, PROMPT, **arguments, steps=8))
    assert canvases(llada2_block_causal(model, PROMPT, **arguments, threshold=1.0)) == want
    unedited = llada21(model, PROMPT, **arguments, threshold=1.0, edit_threshold=1.0)
    assert canvases(unedited) == [*want[:5], want[4], *want[5:], want[-1]], "a step a block that finds nothing"


# Column 1 says 2 with .834. Column 2 says 1 with .990 while column 1 is masked, 3 with .932 when 2 stands there.
# Column 3 says 2 with less than .5.
LEFT = torch.zeros(5, 5)
LEFT[M, 1], LEFT[2, 3] = 6.0, 4.0
LINE = sure((0, 0), (2, 3.0), (0, 0), (2, 1.0))
LINE[3, 1] = -10.0


def test_llada21_edits_by_hand():
    """Column 2 is edited in the step that commits column 3; then one step finds nothing to do."""
    model = Deaf(LINE, LEFT)
    trace = llada21(model, [0], mask_id=M, max_new_tokens=3, steps=3)
    assert canvases(trace) == [[0, M, M, M], [0, M, 1, M], [0, 2, 1, M], [0, 2, 3, 2], [0, 2, 3, 2]]
    assert order(trace) == [[2], [1], [3, 2], []]
    assert [step.step for step in trace.steps] == [0, 1, 2, 3]
    assert trace.steps[2].eligible == [3, 1, 2], "what might have been written, so that near ties are known"


def test_llada21_edits_after_the_block_is_full():
    """Two columns: the second is edited when the block holds no mask."""

    def sample(**options):
        return llada21(Deaf(LINE[:3], LEFT), [0], mask_id=M, max_new_tokens=2, steps=2, **options)

    assert order(sample()) == [[2], [1], [2], []] and sample().canvas.tolist() == [0, 2, 3]
    assert order(sample(edit_threshold=0.94)) == [[2], [1], []] and sample(edit_threshold=0.94).canvas[2] == 1
    assert order(sample(edit_steps=1)) == [[2], [1], [2]]
    assert order(sample(edit_steps=0)) == [[2], [1]]
    full = Deaf(LINE[:3], LEFT)(torch.tensor([[0, 2, 1]])).logits[0]
    exactly = float(_log_softmax(full).amax(1).exp()[2])
    assert order(sample(edit_threshold=exactly))[2] == [], "above means above"
    assert sample(edit_threshold=exactly).steps[2].transfer_gap < 1 < sample().steps[2].transfer_gap


def test_llada21_edits_its_own_block_only():
    """Block by block: when column 1 has changed what column 2 would say, column 2's block is not the first's."""
    model = Musing({M: 1})
    trace = llada21(model, [0], mask_id=M, max_new_tokens=4, block_size=2, steps=1)
    assert trace.canvas.tolist() == [0, 1, 1, 1, 1]
    model.next_token |= {0: 2}  # the prompt's token would change too
    assert llada21(model, [0], mask_id=M, max_new_tokens=4, block_size=2, steps=1).canvas.tolist() == [0, 1, 1, 1, 1]
    restless = llada21(Musing({M: 1, 1: 2, 2: 1}), [0], mask_id=M, max_new_tokens=4, block_size=2, steps=1)
    assert order(restless) == [[1, 2]] * 17 + [[3, 4]] * 17
    assert [step.step for step in restless.steps] == [*range(17)] * 2


def test_llada21_never_edits_to_the_mask():
    trace = llada21(Musing({M: 1, 1: M}), [0], mask_id=M, max_new_tokens=2, steps=1)
    assert order(trace) == [[1, 2], []] and trace.canvas.tolist() == [0, 1, 1]


def test_a_block_that_proposes_the_mask_stays_open_and_is_left():
    """All are above the threshold, or one is due; in each step of the second block the first is left alone."""
    for sample, want in (
        (llada2_block_causal, [[1, 2], [1, 2], [3, 4], [3, 4]]),
        (llada21, [[1, 2], [1, 2], [3, 4], [3, 4]]),
        (bd3lm, [[1], [1], [3], [3]]),
    ):
        trace = sample(
            Musing({M: M}), [0], mask_id=M, max_new_tokens=4, block_size=2, steps=4 if sample is bd3lm else 2
        )
        assert order(trace) == want and trace.canvas.tolist() == [0, M, M, M, M]


# the end of a row


def test_bd3lm_ends_with_the_block_of_its_eos():
    arguments = dict(mask_id=M, max_new_tokens=5, block_size=3)
    ended = bd3lm(Deaf(sure(*ROW)), [EOS], steps=6, eos_token_id=EOS, **arguments)
    assert canvases(ended)[1:] == [[EOS, M, EOS, M, M, M], [EOS, 1, EOS, M, M, M], [EOS, 1, EOS, EOS, EOS, EOS]]
    assert torch.equal(ended.steps[-1].canvas, ended.canvas)
    assert bd3lm(Deaf(sure(*ROW)), [EOS], steps=6, **arguments).canvas.tolist() == [EOS, 1, EOS, 2, 1, 1]
    at_once = llada2_block_causal(Deaf(sure(*ROW)), [EOS], steps=3, eos_token_id=EOS, **arguments)
    assert canvases(at_once)[1:] == [[EOS, M, EOS, M, M, M], [EOS, 1, EOS, EOS, EOS, EOS]]


def test_an_edited_eos_ends_nothing():
    arguments = dict(mask_id=M, max_new_tokens=4, block_size=2, steps=1, eos_token_id=EOS)
    trace = llada21(Musing({M: EOS, EOS: 1}), [0], **arguments)
    assert trace.canvas.tolist() == [0, 1, 1, 1, 1] and trace.forwards == 6
    kept = llada21(Musing({M: EOS}), [0], **arguments)
    assert kept.canvas.tolist() == [0] + [EOS] * 4 and kept.forwards == 2


# Fast-dLLM


@pytest.mark.parametrize("rule", [dict(threshold=0.7), dict(factor=0.6)])
def test_fast_dllm_without_a_cache_is_threshold_decode(rule):
    model = bidirectional(tiny("Llama"))
    arguments = dict(**DRAWN, max_new_tokens=10, block_size=4, **rule)
    for options in (dict(), dict(right_shift_logits=True, cfg_scale=0.4), dict(eos_token_id=20)):
        want = threshold_decode(model, PROMPT, **arguments, **options)
        got = fast_dllm(model, PROMPT, cache=None, **arguments, **options)
        assert canvases(got) == canvases(want) and order(got) == order(want)


def test_fast_dllm_by_steps_is_llada_without_empty_steps():
    for steps in (2, 6, 8, 20):
        want = llada(wandering(), [0, 1], mask_id=M, gen_length=8, block_length=4, steps=steps)
        got = fast_dllm(wandering(), [0, 1], mask_id=M, cache=None, max_new_tokens=8, block_size=4, steps=steps)
        assert got.forwards == len(want.changes) - 1 and torch.equal(
            torch.stack(got.history), torch.stack(want.changes)
        )
    odd = fast_dllm(wandering(), [0], mask_id=M, cache=None, max_new_tokens=10, block_size=4, steps=4)
    assert [len(columns) for columns in order(odd)] == [2, 2, 2, 2, 1, 1]


@pytest.mark.parametrize("cache, later", [("prefix", [6, 2]), ("dual", [4, 2])])
def test_fast_dllm_runs_what_its_cache_does_not_hold(cache, later):
    """A prompt of six, blocks of four and two; two steps each: the whole row, then the block and, with the prefix kept,
    what is right of it."""
    model, ran = tiny("Llama"), []
    model.model.embed_tokens.register_forward_pre_hook(lambda module, args: ran.append(args[0][0].tolist()))
    trace = fast_dllm(model, PROMPT, **GREEDY, cache=cache, max_new_tokens=6, block_size=4, steps=4)
    canvas = [history.tolist() for history in trace.history]
    assert [len(columns) for columns in ran] == [12, later[0], 12, later[1]]
    assert ran == [canvas[0], canvas[1][6 : 6 + later[0]], canvas[2], canvas[3][10:]]


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_one_step_a_block_reads_no_cache(cache):
    model = bidirectional(tiny("Qwen3"))
    arguments = dict(**DRAWN, max_new_tokens=10, block_size=4, threshold=0.0)
    got, want = (fast_dllm(model, PROMPT, cache=kind, **arguments) for kind in (cache, None))
    assert canvases(got) == canvases(want) and got.forwards == 3


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("rule", [dict(threshold=0.6), dict(factor=0.6), dict(steps=8)])
def test_one_layer_has_nothing_that_grows_stale(cache, rule):
    """Keys and values of a first layer depend on their own token alone, and outside the block no token changes. With
    guidance the two passes differ in the prompt's."""
    model = bidirectional(tiny("Qwen2", num_hidden_layers=1))
    for options in (dict(), dict(cfg_scale=0.7)):
        arguments = dict(**DRAWN, max_new_tokens=10, block_size=4, **rule, **options)
        got, want = (fast_dllm(model, PROMPT, cache=kind, **arguments) for kind in (cache, None))
        assert canvases(got) == canvases(want) and got.forwards > 3


def test_two_layers_grow_stale():
    """What the second step of a block thinks differs between all three, as long as something stands right of it."""
    model = bidirectional(tiny("Llama"))

    def second(max_new_tokens, cache):
        arguments = dict(cache=cache, max_new_tokens=max_new_tokens, block_size=4, steps=4)
        return fast_dllm(model, PROMPT, **GREEDY, **arguments).steps[1].score64[6:10, LLAMA_MASK + 1 :]

    none, prefix, dual = (second(8, cache) for cache in (None, "prefix", "dual"))
    nearest = min(float((a - b).abs().max()) for a, b in ((none, prefix), (none, dual), (prefix, dual)))
    assert nearest > 1e-2 * float(none.abs().max())
    assert torch.equal(second(4, "prefix"), second(4, "dual")), "with nothing right of the block they are one"


def test_with_a_shift_the_first_column_reads_what_was_said_before():
    model = tiny("Llama")
    steps = fast_dllm(
        model, PROMPT, **GREEDY, cache="dual", max_new_tokens=4, block_size=4, threshold=1.5, right_shift_logits=True
    ).steps
    first, later = steps[0].score64, steps[2].score64
    assert torch.equal(first[6], later[6]) and not torch.equal(first[7], later[7])


def test_fast_dllm_takes_one_rule():
    for rules in (dict(), dict(threshold=0.9, factor=0.5), dict(threshold=0.9, steps=4)):
        with pytest.raises(AssertionError):
            fast_dllm(wandering(), [0], mask_id=M, cache=None, max_new_tokens=2, **rules)
    with pytest.raises(AssertionError):
        fast_dllm(wandering(), [0], mask_id=M, cache="suffix", threshold=0.9)
