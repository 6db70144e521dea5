"""What a model sees is found by trying it: what fails is refused or routed round, and the model is left as it was."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from dllm.core import samplers
from dllm.fast import generate, visibility
from dllm.fast.sampling.unpadded import RowGroups
from dllm.models import EditFlowModel, bidirectional
from dllm.models.bidirectional import causal
from tests.blind_models import Averaging, Deaf, Leftward, Maskless, blind, causal_llama
from tests.causal_models import causal_model
from tests.models import FAMILIES, MASK_ID, left_padded, make_prompt, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TOKENIZER = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=2, pad_token_id=1)
ROWS = [[7, 8, 9, 20, 30], [10], [11, 12], [12, 13]]


def sight(model):
    return visibility._verdict(model, CPU, visibility._visibility)


def watched(model):
    """The shapes that its forward is called with, from now on."""
    shapes = []
    model.register_forward_pre_hook(lambda _, args, given: shapes.append(given["input_ids"].shape), with_kwargs=True)
    return shapes


# what is found


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_masked_language_models_see_all_but_padding(family, dtype, attention):
    """A mask of [B, L] leaves every bit as it was, in every dtype."""
    model = tiny(family, attn_implementation=attention).to(dtype)
    assert sight(model) == visibility.Visibility(left=True, right=True, rows=False)
    assert visibility.why_not_padded(model, CPU) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_causal_architectures(family, dtype):
    model = copy.deepcopy(causal_model(family, dtype=dtype))
    visibility.check_bidirectional(model, CPU)
    visibility.check_block_mask(model, CPU)
    assert visibility.why_not_padded(model, CPU) is None
    causal(model)
    with pytest.raises(ValueError, match=rf"{family}ForCausalLM do not see those on their right: .*dllm.models.bidir"):
        visibility.check_bidirectional(model, CPU)
    bidirectional(model)  # a refusal does not outlive its cause
    visibility.check_bidirectional(model, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_weights_of_a_mixture_of_experts(dtype):
    size = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    size |= dict(intermediate_size=16, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)
    torch.manual_seed(0)
    model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**size)).to(dtype).eval()
    assert sight(model) == visibility.Visibility(left=True, right=False, rows=False)
    assert visibility.why_not_padded(model, CPU) is None


def test_rounding_between_rows_is_no_sight():
    """What a control row shows of it is set against the change; far above rounding, rows see each other."""
    assert sight(Leftward((1,))) == visibility.Visibility(left=True, right=False, rows=False)
    assert sight(Averaging((0, 1))).rows and not sight(Averaging((1,))).rows


def test_padding_that_only_counts_is_seen():
    """The token of the padding is hidden, how much there is of it is not."""
    assert "differ by up to" in visibility.why_not_padded(Averaging((1,)), CPU)


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("words", [1, 2, 4])
def test_few_words_and_positions(words, columns):
    size = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, pad_token_id=None)
    torch.manual_seed(0)
    for seen in (True, False):
        bert = transformers.BertConfig(**size, vocab_size=words, max_position_embeddings=columns, is_decoder=not seen)
        model = transformers.BertForMaskedLM(bert).eval()
        if seen or words == 1 or columns == 1:
            visibility.check_bidirectional(model, CPU)
        else:
            with pytest.raises(ValueError, match="on their right"):
                visibility.check_bidirectional(model, CPU)
        assert visibility.why_not_padded(model, CPU) is None


def test_nothing_is_concluded_from_nan():
    model = causal_llama()
    kept = model.model.norm.weight.data.clone()
    model.model.norm.weight.data.fill_(torch.nan)  # no new version of the weight
    visibility.check_bidirectional(model, CPU)
    assert visibility.why_not_padded(model, CPU) is None
    model.model.norm.weight.data.copy_(kept)
    with pytest.raises(ValueError, match="on their right"):
        visibility.check_bidirectional(model, CPU)


class Rounds(Averaging):
    """Rounds to bfloat16, each shape in another way, and hands out float32, as under accelerate's autocast."""

    def forward(self, input_ids, attention_mask=None):
        logits = self.head(torch.tanh(self.table(input_ids))).bfloat16()
        return SimpleNamespace(logits=torch.nextafter(logits, logits.new_tensor(9.0 * (input_ids.numel() % 2))).float())


def test_rounding_in_another_dtype_than_the_logits():
    """Between a padded row and the row alone."""
    model = Rounds((1,))
    ids = torch.tensor([[7, 8, 9]])
    assert not torch.equal(model(ids).logits[0], model(ids.repeat(2, 1)).logits[0])
    assert visibility.why_not_padded(model, CPU) is None


# how often, and what is left of it


def test_a_model_is_tried_once_and_again_when_it_changes():
    model = tiny("bert")
    shapes = watched(model)
    for _ in range(2):
        visibility.check_bidirectional(model, CPU)
        visibility.why_not_batched(model, CPU)
        assert [tuple(shape) for shape in shapes] == [(5, 4)] * 2
    for _ in range(2):
        visibility.why_not_padded(model, CPU)
        assert [tuple(shape) for shape in shapes[2:]] == [(2, 4)] * 2 + [(1, 3)]
    tries = len(shapes)
    changes = [
        lambda: nn.init.normal_(model.bert.encoder.layer[0].output.dense.weight),
        lambda: setattr(model.bert.encoder.layer[0].output.dense, "weight", nn.Parameter(torch.randn(32, 48))),
        lambda: model.bert.encoder.layer[1].register_forward_hook(lambda *_: None),
        lambda: setattr(model.bert.encoder.layer[1].output, "dropout", nn.Identity()),  # without weights
        lambda: setattr(model.config, "layer_norm_eps", model.config.layer_norm_eps),
        lambda: setattr(model.config, "layer_norm_eps", 1e-3),
        lambda: model.to(torch.bfloat16),
    ]
    new = []
    for change in changes:
        change()
        visibility.check_bidirectional(model, CPU)
        new.append(len(shapes) > tries)
        tries = len(shapes)
    assert new == [True, True, True, True, False, True, True]
    with torch.autocast("cpu"):
        visibility.check_bidirectional(model, CPU)
    visibility.forget(model)
    visibility.check_bidirectional(model, CPU)
    assert len(shapes) == tries + 4


def test_the_model_is_left_as_it_was():
    model = tiny("bert", hidden_dropout_prob=0.5).train()
    model.bert.pooler = nn.Dropout(0.5).eval()  # one part differs from the others
    model.bert.encoder.layer[0].register_forward_hook(lambda *_: torch.rand(1) and None)  # somebody draws a number
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = sight(model)
    assert visibility.why_not_padded(model, CPU) is None and first.right
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    model.bert.encoder.layer[0].attention.self.query.weight.data.fill_(torch.nan)
    visibility.forget(model)
    visibility.check_bidirectional(model, CPU)
    assert [module.training for module in model.modules()] == modes and torch.equal(torch.get_rng_state(), random)


def test_through_what_wraps_a_model():
    """What torch.compile made of it is not run, and the verdict is the model's own."""

    def refuses(*_):
        raise AssertionError("compiled")

    model = causal_llama()
    for wrapped in (torch.compile(model, backend=refuses), nn.DataParallel(model), copy.deepcopy(model)):
        with pytest.raises(ValueError, match="LlamaForCausalLM do not see those on their right"):
            visibility.check_bidirectional(wrapped, CPU)


def test_an_adapter_is_tried_with_its_model():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(causal_llama(), peft.LoraConfig(target_modules=["q_proj"], r=2))
    with pytest.raises(ValueError, match="on their right"):
        visibility.check_bidirectional(model, CPU)
    bidirectional(model)
    visibility.check_bidirectional(model, CPU)


# what samplers make of it

ALL = {name: getattr(samplers, name) for name in samplers.__all__ if name.endswith("Sampler")}
OURS = [name for name, kind in ALL.items() if issubclass(kind, samplers.BaseSampler) and name != "BaseSampler"]
OURS.remove("NemotronDiffusionSampler")  # whose models are causal between blocks


@pytest.mark.parametrize("name", OURS)
def test_no_sampler_runs_a_causal_model(name):
    """Nor one that ignores a mask of blocks, where it needs one."""
    model = causal_llama(attn_implementation="eager")  # adds a mask of bool to scores
    sampler = getattr(samplers, name)(model, TOKENIZER)
    settings = [{"cache": False}, {"cache": True}] if "BD3LM" in name or "LLaDA2" in name else [{}]
    for options in settings:
        with pytest.raises(ValueError, match="bidirectional"):
            sampler.sample([[7, 8]], max_new_tokens=4, **options)
    with pytest.raises(ValueError, match="bidirectional"):
        sampler.infill([[7, MASK_ID, 8]])


def test_no_sampler_of_edits_runs_a_causal_model():
    backbone = bidirectional(causal_llama())
    backbone.config.masked_diffusion = {"family": "llada"}
    model = EditFlowModel.from_backbone(backbone)
    causal(backbone)
    with pytest.raises(ValueError, match="bidirectional"):
        samplers.EditFlowSampler(model, TOKENIZER).sample([[7, 8]])


def test_generate_runs_no_causal_model():
    model = causal_llama()
    with pytest.raises(ValueError, match="positions of LlamaForCausalLM do not see those on their right"):
        generate(model, torch.tensor([[7, 8]]), 4, 4, 4, mask_id=MASK_ID)
    generate(bidirectional(model), torch.tensor([[7, 8]]), 4, 4, 4, mask_id=MASK_ID)


def int8(model):
    """Its layers quantised with one scale for all that a batch holds; the head is as it was."""
    torch.ao.quantization.quantize_dynamic(model.bert, {nn.Linear}, dtype=torch.qint8, inplace=True)
    return model


ROUTED = {
    "ignores the mask": (lambda: blind(Deaf), "only rows of one length run together, because padding is seen in Deaf"),
    "takes no mask": (lambda: blind(Maskless), "only rows of one length run together, because Maskless takes no atten"),
    "counts padding": (lambda: Averaging((1,)), "only rows of one length run together, because logits of Averaging di"),
    "rows": (lambda: Averaging((0, 1)), "rows run one at a time, because rows of a batch see each other in Averaging"),
    "int8": (lambda: int8(tiny("bert")), "rows run one at a time, because rows of a batch see each other in Bert"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
@pytest.mark.parametrize("name", ROUTED)
def test_a_row_is_what_it_is_alone(name, cfg_scale, caplog):
    make, why = ROUTED[name]
    model = make()
    settings = dict(max_new_tokens=6, steps=6, temperature=0.7, cfg_scale=cfg_scale, return_dict=True)
    sampler = samplers.MDLMSampler(model, TOKENIZER)
    out = sampler.sample(ROWS, seed=[1, 2, 3, 4], **settings)
    assert why in out.stats.note and out.stats.forwards == 6
    for i, row in enumerate(ROWS):
        alone = sampler.sample([row], seed=i + 1, **settings)
        assert torch.equal(out.sequences[i, : len(row) + 6], alone.sequences[0])
    assert [why in record.message for record in caplog.records if record.levelno >= logging.WARNING] == [True]
    even = sampler.sample([row[:1] for row in ROWS], seed=[1, 2, 3, 4], **settings)  # rows of one length need no mask
    assert ("run together" in even.stats.note) is False


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("name, options", [("BD3LM", {}), ("BD3LM", {"cache": False}), ("FastDLLM", {})])
def test_beside_a_cache_rows_that_see_each_other_are_refused(name, options):
    model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(causal_model()).model, {nn.Linear}, dtype=torch.qint8)
    whole = copy.deepcopy(causal_model())
    whole.model = model
    with pytest.raises(ValueError, match="rows run together, and rows of a batch see each other in Llama"):
        getattr(samplers, f"{name}Sampler")(whole, TOKENIZER).sample([[7, 8], [9]], max_new_tokens=4, **options)


@pytest.mark.parametrize("name, favoured", [("ignores the mask", 9.0), ("rows", 12.0)])
def test_rows_that_run_apart_leave_when_they_are_done(name, favoured):
    """Early stops, the live view, left-padded prompts and an empty one among them."""
    model = ROUTED[name][0]()
    prompt, mask = left_padded(blind(Deaf), [5, 0, 3, 3])
    prompt = prompt.clamp(max=96)
    model.get_output_embeddings().bias.data[2] += favoured
    options = dict(mask_id=MASK_ID, temperature=0.9, eos_token_id=2, return_stats=True)
    views = []
    got, stats = generate(model, prompt, 16, 16, 2, attention_mask=mask, seed=5, on_step=views.append, **options)
    assert len(set(stats.row_forwards)) > 1 and len(views) == stats.forwards
    for row, length in enumerate([5, 0, 3, 3]):
        alone, _ = generate(model, prompt[row : row + 1, 5 - length :], 16, 16, 2, seed=5 + row, **options)
        assert torch.equal(got[row, 5 - length :], alone[0])


def test_groups_of_rows():
    apart = RowGroups((5, 3, 5), one_by_one=False)
    assert apart.groups(copies=2) == {5: [0, 2, 3, 5], 3: [1, 4]}
    assert apart.rows([2, 1]) == RowGroups((5, 3), one_by_one=False)
    assert list(apart._replace(one_by_one=True).groups(copies=2).values()) == [[0], [1], [2], [3], [4], [5]]


def test_graphs_are_no_part_of_it(monkeypatch):
    """On a GPU rows that run apart run eagerly, and an insisted capture is an error."""
    from dllm.fast import capture

    monkeypatch.setattr(capture, "wanted", lambda *_: (True, ""))
    model = blind(Deaf)
    prompt, mask = left_padded(model, [3, 2])
    options = dict(mask_id=MASK_ID, attention_mask=mask, return_stats=True)
    _, stats = generate(model, prompt, 4, 4, 4, **options)
    assert stats.mode == "eager" and "rows run in several forwards of a step; only rows of one length" in stats.note
    with pytest.raises(RuntimeError, match="cuda_graph=True, but the step cannot be captured: rows run in several"):
        generate(model, prompt, 4, 4, 4, cuda_graph=True, **options)


def test_a_padded_batch_costs_no_trial_the_second_time():
    model = tiny("bert")
    prompt, mask = left_padded(model, [4, 2])
    options = dict(mask_id=MASK_ID, attention_mask=mask)
    generate(model, prompt, 4, 4, 4, **options)
    shapes = watched(model)
    generate(model, prompt, 4, 4, 4, **options)  # another hook: the head and the model are looked at anew
    shapes.clear()
    generate(model, prompt, 4, 4, 4, **options)
    assert shapes == [(2, 8)] * 4
    generate(model, make_prompt(model, 1, 4), 4, 4, 4, mask_id=MASK_ID)
    assert shapes[4:] == [(1, 8)] * 4
