"""Causal models made bidirectional, against a transformer written out in float64."""

import copy

import pytest
import torch
import transformers
from torch import Tensor

from dllm.models import bidirectional, causal
from dllm_kernels.testing import assert_no_worse, operand_rounding
from tests.flash_stand_in import register
from tests.watch import SyncWatch

FAMILIES = ("Llama", "Qwen2", "Qwen3")
LENGTHS = (7, 4, 1)  # of the rows of `IDS`
IDS = torch.randint(5, 61, (3, 7), generator=torch.Generator().manual_seed(0))
REAL = torch.arange(7) < torch.tensor(LENGTHS)[:, None]

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(family: str, attention: str = "sdpa", **options) -> torch.nn.Module:
    """A random model in eval mode, two layers, four heads for two of keys; its attention far from uniform."""
    size = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8)
    size |= dict(num_attention_heads=4, num_key_value_heads=2, attn_implementation=attention) | options
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**size))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 3 / parameter.shape[1] ** 0.5 if parameter.dim() == 2 else 1 + 0.1 * noise)
    return model.eval()


def written_out(model, ids: Tensor, seen: Tensor) -> Tensor:
    """Logits [B, L, V] in float64 from the weights alone; `seen` [B, L, L]: query, key."""
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    heads, groups, size = 4, 2, 8
    angle = torch.arange(ids.shape[1])[:, None] * 10000.0 ** (-torch.arange(0, size, 2).double() / size)

    def norm(x, name):
        return x * (x.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).rsqrt() * weights[f"{name}.weight"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].t() + weights.get(f"{name}.bias", 0.0)

    def per_head(x, name, count, turned=True):
        x = linear(x, f"{name}_proj").unflatten(-1, (count, size)).transpose(1, 2)
        if turned and f"{name}_norm.weight" in weights:
            x = norm(x, f"{name}_norm")
        if turned:  # pairs (i, i + size/2) by their angle
            a, b = x.chunk(2, -1)
            x = torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)
        return x.repeat_interleave(heads // count, 1)

    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(2):
        own = f"model.layers.{layer}"
        y = norm(x, f"{own}.input_layernorm")
        q = per_head(y, f"{own}.self_attn.q", heads)
        k = per_head(y, f"{own}.self_attn.k", groups)
        v = per_head(y, f"{own}.self_attn.v", groups, turned=False)
        scores = (q @ k.mT / size**0.5).masked_fill(~seen[:, None], -torch.inf)
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{own}.self_attn.o_proj")
        y = norm(x, f"{own}.post_attention_layernorm")
        gated = torch.nn.functional.silu(linear(y, f"{own}.mlp.gate_proj")) * linear(y, f"{own}.mlp.up_proj")
        x = x + linear(gated, f"{own}.mlp.down_proj")
    return linear(norm(x, "model.norm"), "lm_head")


def by_hand(family: str, ids: Tensor, seen: Tensor) -> Tensor:
    """Logits of the untouched model with eager attention, given an additive mask of four dimensions."""
    additive = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
    return tiny(family, "eager")(ids, attention_mask=additive).logits


def judge(got: Tensor, family: str, ids: Tensor, seen: Tensor, rows: Tensor) -> None:
    """On the positions `rows` [B, L], the logits' error is at most twice that of the computation by hand."""
    model = tiny(family).double()
    plain, truth = by_hand(family, ids, seen), written_out(model, ids, seen)
    wrong = (plain - truth)[rows].abs().max() / truth[rows].abs().max()
    assert wrong < 1e-3, "another formula, not rounding: two equal errors would judge nothing"
    rounding = operand_rounding(lambda: {"logits": written_out(model, ids, seen)[rows]}, model.parameters())
    assert_no_worse({"logits": got[rows]}, {"logits": plain[rows]}, {"logits": truth[rows]}, rounding=rounding)


def everyone(real: Tensor) -> Tensor:
    return real[:, None, :].expand(-1, real.shape[1], -1)


BLOCKS = (torch.arange(7)[:, None] // 3 >= torch.arange(7) // 3).expand(3, 7, 7)
MASKS = {
    "none": (None, everyone(torch.ones_like(REAL))),
    "int64 [B, L]": (REAL.long(), everyone(REAL)),
    "bool [B, L]": (REAL, everyone(REAL)),
    "bool [B, 1, 1, L]": (REAL[:, None, None, :], everyone(REAL)),
    "bool [B, 1, L, L], of blocks": (BLOCKS[:, None], BLOCKS),
    "additive [1, 1, L, L]": (torch.zeros(1, 1, 7, 7).masked_fill(~BLOCKS[:1, None], -1e30), BLOCKS),
}


@torch.no_grad()
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits(family, attention, mask):
    given, seen = MASKS[mask]
    got = bidirectional(tiny(family, attention))(IDS, attention_mask=given).logits
    judge(got, family, IDS, seen, seen.diagonal(dim1=1, dim2=2))


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_row_is_the_row_alone(family, attention):
    model = bidirectional(tiny(family, attention))
    together = model(IDS, attention_mask=REAL.long()).logits
    elsewhere = model(torch.where(REAL, IDS, 60), attention_mask=REAL.long()).logits
    assert torch.equal(together[REAL], elsewhere[REAL]), "what stands in the padding is seen by nobody"
    for row, length in enumerate(LENGTHS):
        alone = IDS[row : row + 1, :length]
        judge(together[row : row + 1, :length], family, alone, torch.ones(1, length, length).bool(), alone >= 0)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family, attention):
    model = tiny(family, attention)
    before = model(IDS).logits
    other = IDS.clone()
    other[:, -1] = 60
    assert torch.equal(model(other).logits[:, :-1], before[:, :-1]), "causal"
    assert bidirectional(bidirectional(model)) is model
    differs = (model(other).logits != model(IDS).logits).any(-1)
    assert differs.all(), "every position sees the last"
    assert causal(model) is model
    assert torch.equal(model(IDS).logits, before) and model(IDS).past_key_values is not None
    assert not any(module._forward_pre_hooks or module._forward_pre_hooks_with_kwargs for module in model.modules())
    assert causal(model) is model, "a causal model stays so"


@torch.no_grad()
def test_copies_keep_it_and_files_do_not(tmp_path):
    model = tiny("Qwen3")
    state, config, before = list(model.state_dict()), model.config.to_dict(), model(IDS).logits
    after = bidirectional(model)(IDS).logits
    assert list(model.state_dict()) == state and model.config.to_dict() == config
    twin = copy.deepcopy(model)
    assert torch.equal(twin(IDS).logits, after)
    causal(twin)
    assert torch.equal(twin(IDS).logits, before) and torch.equal(model(IDS).logits, after)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(IDS).logits, before)
    assert torch.equal(bidirectional(loaded)(IDS).logits, after)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("mask", [None, REAL.long()], ids=["full", "padded"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_with_and_without_checkpointing(family, reentrant, mask):
    model = bidirectional(tiny(family).train())
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(dict(use_reentrant=reentrant))
            model.enable_input_require_grads()
        model.zero_grad()
        model(IDS, attention_mask=mask).logits[:, 0].logsumexp(-1).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

    model.eval()  # without checkpoints, of which the reentrant ones serve backward() only
    embeds = model.get_input_embeddings()(IDS).detach().requires_grad_()
    first = model(inputs_embeds=embeds, attention_mask=mask).logits[:, 0].logsumexp(-1).sum()
    reached = torch.autograd.grad(first, embeds)[0].abs().amax(-1) > 0
    assert torch.equal(reached, REAL if mask is not None else torch.ones_like(REAL)), "all that is real, nothing else"


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_without_padding_attention_gets_no_mask_and_nothing_waits(family, monkeypatch):
    got = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def noted(*args, attn_mask=None, is_causal=False, **kwargs):
        got.append((None if attn_mask is None else list(attn_mask.shape), is_causal))
        return attention(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    model = bidirectional(tiny(family))
    for given, mask in ((None, None), (REAL, [3, 1, 1, 7]), (BLOCKS[:, None], [3, 1, 7, 7])):
        with SyncWatch() as watch:
            output = model(IDS, attention_mask=given)
        assert watch.operators > 30 and not watch.seen
        assert output.past_key_values is None
        assert got == [(mask, False)] * 2
        got.clear()


@torch.no_grad()
def test_the_decoder_itself_takes_its_arguments_by_position():
    model = bidirectional(tiny("Llama"))
    by_name = model.model(input_ids=IDS, attention_mask=REAL).last_hidden_state
    assert torch.equal(model.model(IDS, REAL).last_hidden_state, by_name)


@torch.no_grad()
def test_under_lora():
    peft = pytest.importorskip("peft")
    expected = bidirectional(tiny("Qwen2"))(IDS).logits
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"])
    wrapped = peft.get_peft_model(tiny("Qwen2"), config).eval()
    assert torch.equal(bidirectional(wrapped)(input_ids=IDS).logits, expected), "a fresh adapter adds zero"
    assert torch.equal(peft.get_peft_model(bidirectional(tiny("Qwen2")), config).eval()(input_ids=IDS).logits, expected)


def test_what_is_refused():
    bert = transformers.BertForMaskedLM(
        transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    for function in (bidirectional, causal):
        with pytest.raises(ValueError, match=r"one of LlamaForCausalLM, Qwen2.*, Qwen3.*, got BertForMaskedLM"):
            function(bert)
    sliding = tiny("Qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(ValueError, match=r"whole sequence, got a sliding window in layers \[1\]"):
        bidirectional(sliding)
    model = bidirectional(tiny("Llama"))
    for shape in ((3, 6), (3, 7, 7), (3, 1, 7, 8)):
        with pytest.raises(ValueError, match=r"must be None, \[3, 7\] or \[B, 1, L, 7\], got \["):
            model(IDS, attention_mask=torch.ones(shape))
    with pytest.raises(ValueError, match="got dict"):
        model(IDS, attention_mask={"full_attention": None})
    with pytest.raises(ValueError, match=r"must be bool, or .* additive, got torch.int64"):
        model(IDS, attention_mask=BLOCKS[:, None].long())
    with pytest.raises(ValueError, match="keeps no cache"):
        model(IDS, use_cache=True)
    with pytest.raises(ValueError, match="keeps no cache"):
        model(IDS, past_key_values=transformers.DynamicCache())
    with pytest.raises(ValueError, match="keeps no cache"):
        model.generate(IDS, max_new_tokens=2, pad_token_id=0)
    model.config._attn_implementation = "paged"
    with pytest.raises(ValueError, match="must be eager, sdpa, flex_attention, packed_sdpa or flash attention, got"):
        model(IDS)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_what_flash_attention_is_given(family):
    model = bidirectional(tiny(family))
    model.config._attn_implementation = register()  # which asserts that nothing is causal
    for given, seen in ((None, torch.ones_like(REAL)), (REAL.long(), REAL), (REAL[:, None, None, :], REAL)):
        got = model(IDS, attention_mask=given).logits
        judge(got, family, IDS, everyone(seen), seen)
    one = model(IDS[:1], position_ids=torch.tensor([[0, 1, 2, 3, 4, 4, 4]]))  # which packed sequences do not have
    assert one.logits.shape == (1, 7, 61)
    for given in (BLOCKS[:, None], torch.zeros(3, 1, 1, 7)):
        with pytest.raises(
            ValueError, match=r"under flash_.* attention_mask must be None or \[B, L\]: it takes no 4-D m"
        ):
            model(IDS, attention_mask=given)
    with pytest.raises(
        ValueError, match=r"must be None: it takes no mask over kept keys; got torch.bool \[3, 1, 1, 7\]"
    ):
        model(IDS, attention_mask=REAL[:, None, None, :], past_key_values=transformers.DynamicCache())
