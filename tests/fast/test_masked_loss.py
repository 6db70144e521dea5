"""masked_loss against full logits in float64, for every way in which a model's logits come about."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dllm.fast.model import unwrapped
from dllm.fast.training.loss import masked_loss
from dllm_kernels.testing import assert_model_no_worse
from tests.models import FAMILIES, PAD_ID, kind_of, make_prompt, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH, LENGTH = 3, 9


def model_of(family="bert", **options):
    dropouts = {} if family == "modernbert" else dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return tiny(family, **(dropouts | options)).train()


def batch_of(model, rows=7, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = make_prompt(model, BATCH, LENGTH)
    chosen = torch.randperm(BATCH * LENGTH, generator=generator)[:rows]
    return dict(
        inputs={"input_ids": tokens},
        rows=chosen,
        targets=torch.randint(5, 97, (rows,), generator=generator),
        row_weight=1000 ** torch.rand(rows, generator=generator),  # up to w(1e-3)
    )


def plain(model, inputs, rows, targets, row_weight):
    """Loss, nll and gradients from full logits, at the model's dtype."""
    nll = F.cross_entropy(model(**inputs).logits.flatten(0, 1)[rows], targets, reduction="none")
    loss = (row_weight.to(nll.dtype) * nll).sum()
    loss.backward()
    return loss.detach(), nll.detach(), [p.grad for p in model.parameters()]


def named(loss, nll, gradients):
    return {"loss": loss, "nll": nll, "gradient": torch.cat([g.flatten() for g in gradients])}


def check(model, batch):
    """Loss, nll and gradients beside those of full logits in the same dtype."""
    fast = copy.deepcopy(model)
    result = masked_loss(fast, **batch)
    result.loss.backward()
    found = named(result.loss.detach(), result.nll, [p.grad for p in fast.parameters()])
    assert_model_no_worse(found, lambda model: named(*plain(model, **batch)), model)
    assert result.loss.dtype == result.nll.dtype == torch.float32 and not result.nll.requires_grad
    return kind_of(fast)


class Thrice(nn.Linear):
    """A head that is not nn.Linear: LoRA and quantised ones look like this."""

    def forward(self, hidden):
        return super().forward(hidden) * 3


def as_thrice(model):
    model.get_output_embeddings().__class__ = Thrice
    return model


class Capped(nn.Module):
    """A model that does more after its head."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def forward(self, input_ids):
        output = self.inner(input_ids=input_ids)
        output.logits = 5 * torch.tanh(output.logits / 5)
        return output


@pytest.mark.parametrize("rows", [1, 7, BATCH * LENGTH])
@pytest.mark.parametrize("family", FAMILIES)
def test_linear_head(family, rows):
    model = model_of(family)
    assert check(model, batch_of(model, rows)) == "linear"


def test_other_heads():
    model = as_thrice(model_of())
    assert check(model, batch_of(model)) == "module"
    offloaded = model_of()
    head = offloaded.get_output_embeddings()
    inner = head.forward
    head.forward = lambda hidden: inner(hidden)  # as accelerate wraps a module that it moves
    batch = batch_of(offloaded)
    loss = masked_loss(offloaded, **batch).loss
    assert kind_of(offloaded) == "module"
    assert float(loss.detach()) == pytest.approx(float(plain(model_of(), **batch)[0]), rel=1e-6)


def test_a_parametrized_head_is_still_linear():
    model = model_of("modernbert", tie_word_embeddings=False)
    nn.utils.parametrizations.weight_norm(model.get_output_embeddings())
    batch = batch_of(model)
    loss = masked_loss(model, **batch).loss.detach()
    assert kind_of(model) == "linear"
    assert float(loss) == pytest.approx(float(plain(model, **batch)[0]), rel=1e-6)


def test_models_that_do_more_after_the_head_are_logged(caplog):
    model = Capped(model_of())
    with caplog.at_level(logging.WARNING, "dllm.fast"):
        assert check(model, batch_of(model.inner)) == "logits"
    assert "full logits, because it computes with its head's output: aten.div" in caplog.text


def test_a_hook_on_the_head_sees_logits(caplog):
    model, seen = model_of(), []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, __, logits: seen.append(logits.shape))
    batch = batch_of(model)
    with caplog.at_level(logging.WARNING, "dllm.fast"):
        first = masked_loss(model, **batch).loss
    assert seen == [(BATCH, LENGTH, model.config.vocab_size)] and "hook" in caplog.text
    hook.remove()
    assert float(masked_loss(model, **batch).loss.detach()) == pytest.approx(float(first.detach()), rel=1e-6)
    assert kind_of(model) == "linear"  # looked at again without the hook


def test_a_head_that_looks_at_its_neighbours_gets_all_rows(caplog):
    class Centred(nn.Linear):
        def forward(self, hidden):
            logits = super().forward(hidden)
            return logits - logits[..., :1, :]

    model = model_of()
    model.get_output_embeddings().__class__ = Centred
    with caplog.at_level(logging.WARNING, "dllm.fast"):
        assert check(model, batch_of(model)) == "logits"
    assert "its head may depend on a row's place: aten.slice" in caplog.text


class Largest(TorchDispatchMode):
    """The most rows of any result that has one column per token of the vocabulary, the transposed weight aside."""

    def __init__(self, vocabulary, hidden):
        super().__init__()
        self.vocabulary, self.hidden, self.rows = vocabulary, hidden, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary:
                rows = tensor.numel() // self.vocabulary
                self.rows = max(self.rows, rows if rows != self.hidden else 0)
        return result


def test_only_the_chosen_rows_meet_the_vocabulary():
    for model in (model_of(), as_thrice(model_of())):
        batch = batch_of(model, rows=5)
        masked_loss(model, **batch)  # the look at the head
        with Largest(model.config.vocab_size, model.config.hidden_size) as largest:
            masked_loss(model, **batch).loss.backward()
        assert largest.rows == 5
        with Largest(model.config.vocab_size, model.config.hidden_size) as largest:
            plain(model, **batch)
        assert largest.rows == BATCH * LENGTH  # so it would have been seen


class NoHostSync(TorchDispatchMode):
    """Fails where a value of a tensor, or a shape that depends on values, is asked for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        eligible = function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        by_bool = function.overloadpacket is torch.ops.aten.index and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        assert not eligible and not by_bool, f"{function} waits for the device"
        return function(*args, **(kwargs or {}))


# with other settings a BERT of transformers 4 itself looks whether anything is padded
SYNC_FREE = dict(pad_token_id=None, attn_implementation="eager")


def test_no_host_sync():
    for model in (model_of(**SYNC_FREE), as_thrice(model_of(**SYNC_FREE)), Capped(model_of(**SYNC_FREE))):
        batch = batch_of(getattr(model, "inner", model))
        masked_loss(model, **batch)  # the look at the head
        with NoHostSync():
            masked_loss(model, **batch).loss.backward()
    with pytest.raises(AssertionError, match="waits"), NoHostSync():
        float(torch.ones(()))


def test_no_rows():
    for model in (model_of(), as_thrice(model_of()), Capped(model_of())):
        result = masked_loss(model, **batch_of(unwrapped(getattr(model, "inner", model)), rows=0))
        result.loss.backward()
        assert float(result.loss.detach()) == 0 and result.nll.shape == (0,)
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.grad is not None)
        assert any(p.grad is not None for p in model.parameters())


def test_a_position_may_be_read_twice():
    """Right shift: positions 0 and 1 are both predicted at 0."""
    model = model_of()
    batch = batch_of(model, rows=4) | dict(rows=torch.tensor([0, 0, 5, 5]))
    assert check(model, batch) == "linear"


def test_padding(device):
    model = model_of()
    batch = batch_of(model)
    mask = (torch.arange(LENGTH) < torch.tensor([LENGTH, 5, 7])[:, None]).long()
    tokens = batch["inputs"]["input_ids"].masked_fill(mask == 0, PAD_ID)
    batch["inputs"] = {"input_ids": tokens, "attention_mask": mask}
    assert check(model, batch) == "linear"


def test_the_head_is_left_as_it_was():
    model = model_of()
    head = model.get_output_embeddings()
    masked_loss(model, **batch_of(model))
    assert "forward" not in head.__dict__
    own = head.__dict__["forward"] = lambda hidden: nn.Linear.forward(head, hidden)
    masked_loss(model, **batch_of(model))
    assert head.__dict__["forward"] is own
    model.base_model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        masked_loss(model, **batch_of(model))
    assert head.__dict__["forward"] is own


def test_looking_at_the_head_draws_no_random_number_and_keeps_the_modes():
    model = tiny("bert").train()  # dropout 0.1
    model.bert.embeddings.eval()
    before = {name: module.training for name, module in model.named_modules()}
    torch.manual_seed(3)
    first = float(masked_loss(model, **batch_of(model)).loss.detach())
    torch.manual_seed(3)
    assert float(masked_loss(model, **batch_of(model)).loss.detach()) == first
    assert before == {name: module.training for name, module in model.named_modules()}


def test_gradient_checkpointing_and_autocast():
    model = model_of()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert check(model, batch_of(model)) == "linear"
    model, batch, fast = model_of(), batch_of(model), model_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = masked_loss(fast, **batch)
    result.loss.backward()
    assert result.loss.dtype == torch.float32 and fast.get_output_embeddings().weight.grad.dtype == torch.float32

    def under_autocast(model):
        half = next(model.parameters()).dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            return named(*plain(model, **batch))

    found = named(result.loss, result.nll, [p.grad for p in fast.parameters()])
    assert_model_no_worse(found, under_autocast, model, dtype=torch.bfloat16)


def test_compiled_model():
    model, batch = model_of(), batch_of(model_of())
    expected = float(masked_loss(model, **batch).loss.detach())
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        found = masked_loss(compiled, **batch).loss
        assert float(found.detach()) == pytest.approx(expected, rel=1e-6)
    found.backward()
    assert model.get_output_embeddings().weight.grad.any()


def test_bad_input():
    model = model_of()
    batch = batch_of(model)
    with pytest.raises(ValueError, match="labels"):
        masked_loss(model, batch["inputs"] | {"labels": batch["inputs"]["input_ids"]}, **_without_inputs(batch))
    with pytest.raises(ValueError, match=r"one shape \[N\].*\[7\], \[7\], \[6\]"):
        masked_loss(model, **(batch | {"row_weight": batch["row_weight"][:6]}))
    with pytest.raises(ValueError, match="output embeddings"):
        masked_loss(nn.Linear(2, 2), **batch)

    class Silent(Capped):
        def forward(self, input_ids):
            output = self.inner(input_ids)
            return output if honest else output.logits.new_zeros(2, 3, 4)

    silent, honest = Silent(model_of()), True
    masked_loss(silent, **batch)
    honest = False
    with pytest.raises(RuntimeError, match="Silent did not hand out"):
        masked_loss(silent, **batch)


def _without_inputs(batch):
    return {name: value for name, value in batch.items() if name != "inputs"}
