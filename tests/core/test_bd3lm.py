"""BD3LMTrainer against plain PyTorch that runs each block alone, after the clean text before it, as a sampler does."""

from __future__ import annotations

import copy
import hashlib
import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import BertForMaskedLM

from dllm.core.schedulers import LinearAlphaScheduler
from dllm.core.trainers import BD3LMConfig, BD3LMTrainer
from dllm.core.trainers.bd3lm import AppendEOSBlockWrapper
from dllm.core.trainers.block_collator import BD3LMCollator
from dllm.core.trainers.block_mask import block_mask
from dllm.models import bidirectional
from dllm_kernels.testing import assert_no_worse, assert_sum_no_worse
from tests.core import runs
from tests.core import test_mdlm as mdlm
from tests.core.rank import two_ranks
from tests.core.reference import ALPHA, Objective, gradients, uniform
from tests.core.runs import PLAIN, SEED, Gradients, Loose, config_of, model_of, pad_right, samples_of
from tests.fast.test_masked_loss import NoHostSync
from tests.models import MASK_ID, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

V4 = transformers.__version__.startswith("4.")
FAMILIES = ["bert", "roberta", *([] if V4 else ["modernbert"]), "Llama", "Qwen2", "Qwen3"]
BLOCK = 4


def family_model(family, **options):
    if family in ("Llama", "Qwen2", "Qwen3"):
        return causal_model(family, **options)
    if family != "modernbert":
        options |= dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = tiny(family, vocab_size=131, **options)
    model.config.mask_token_id = MASK_ID
    return model


def causal_model(family, **options):
    size = dict(vocab_size=131, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    size |= dict(num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False)
    config = getattr(transformers, f"{family}Config")(**size, mask_token_id=MASK_ID, **options)
    model, generator = getattr(transformers, f"{family}ForCausalLM")(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise * 2.5 / p.shape[1] ** 0.5 if p.dim() == 2 else 1 + 0.1 * noise)
    return model


def taken(model, seen):
    """A mask [n, n] as the model's family wants it."""
    if V4 and not model.can_generate():
        return seen[None].long()

    def additive(mask):
        return torch.zeros(mask.shape, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)[None, None]

    if model.config.model_type != "modernbert":
        return additive(seen)
    place = torch.arange(len(seen))
    near = (place[:, None] - place).abs() <= model.config.local_attention // 2
    return {"full_attention": additive(seen), "sliding_attention": additive(seen & near)}


def logits_by_block(model, tokens, noised, size):
    """Each block by a forward of its own: clean text up to it, then the block with its masks."""
    found = []
    for start in range(0, len(tokens), size):
        ids = tokens[:start] + noised[start : start + size]
        seen = torch.tensor([[k // size <= q // size for k in range(len(ids))] for q in range(len(ids))])
        logits = model(input_ids=torch.tensor([ids]), attention_mask=taken(model, seen)).logits[0]
        found.append(logits[start:])
    return torch.cat(found)


def corrupted(tokens, labels, objective, size, per_block, epoch):
    """x_t, the masked positions and the weight of each."""
    alpha, derivative = ALPHA[objective.alpha]
    content = b"".join(token.to_bytes(8, "little") for token in tokens)
    digest = hashlib.blake2b(content, digest_size=8, key=SEED.to_bytes(8, "little")).digest()
    key = int.from_bytes(digest, "little", signed=True)
    noised, masked, weights = list(tokens), [], []
    for position, label in enumerate(labels):
        u = uniform(key, position // size if per_block else 0, epoch, 3)
        t = objective.low + (objective.high - objective.low) * u
        if label != -100 and uniform(key, position, epoch, 2) < 1 - alpha(t):
            noised[position] = MASK_ID
            masked.append(position)
            weights.append(1.0 if objective.weight == "uniform" else -derivative(t) / (1 - alpha(t) + 1e-6))
    return noised, masked, weights


def truth(model, samples, objective, dtype, *, size=BLOCK, per_block=False, epoch=0):
    """Loss and NLL, by sample, and gradients of one step over `samples`."""
    model = copy.deepcopy(model).to(dtype).eval()
    terms, sums, counts = [], [], []
    for sample in samples:
        tokens, labels = sample["input_ids"], sample["labels"]
        noised, masked, weights = corrupted(tokens, labels, objective, size, per_block, epoch)
        logits = logits_by_block(model, tokens, noised, size)
        reads = [max(p - 1, 0) if objective.right_shift else p for p in masked]
        targets = torch.tensor([tokens[p] for p in masked], dtype=torch.int64)
        nll = (F.cross_entropy(logits[reads], targets, reduction="none") * torch.tensor(weights, dtype=dtype)).sum()
        counts.append(sum(label != -100 for label in labels))
        terms.append(nll / counts[-1] if objective.norm == "sequence" else nll)
        sums.append(nll.detach())
    loss = torch.stack(terms) / (sum(counts) if objective.norm == "token" else len(samples))
    loss.sum().backward()
    return loss.detach().double(), (torch.stack(sums) / sum(counts)).double(), gradients(model)


def trainer_of(folder, model, samples, objective=PLAIN, **options):
    watch = Gradients()
    options = dict(block_size=BLOCK, per_device_train_batch_size=len(samples), num_train_epochs=1) | options
    return runs.trainer_of(folder, model, samples, objective, BD3LMTrainer, callbacks=[watch], **options), watch


def check(trainer, watch, exact, plain):
    """Error at most twice that of plain PyTorch in float32."""
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert_sum_no_worse(trainer.state.log_history[-1]["train_loss"], plain[0], exact[0])
    assert_sum_no_worse(entry["nll"], plain[1], exact[1])
    (step,) = watch.seen
    assert_no_worse({"gradient": step}, {"gradient": plain[2]}, {"gradient": exact[2]}, entries=False)


def both(model, samples, objective, **options):
    return [truth(model, samples, objective, dtype, **options) for dtype in (torch.float64, torch.float32)]


# one block that is not full, whole blocks, a rest, blocks of one token
@pytest.mark.parametrize("length, size", [(3, 4), (4, 2), (7, 3), (4, 1)])
def test_mask_pair_by_pair(length, size):
    mask = block_mask(length, size)
    for q, k in itertools.product(range(2 * length), repeat=2):
        q_noised, k_noised = q < length, k < length
        q_block, k_block = q % length // size, k % length // size
        expected = (
            (q_block == k_block and q_noised == k_noised)
            or (q_noised and not k_noised and q_block > k_block)
            or (not q_noised and not k_noised and q_block >= k_block)
        )
        assert bool(mask[0, q, k]) == expected


def test_mask_of_padded_rows():
    length, real = 5, [3, 5]
    padding = torch.tensor([[int(p < n) for p in range(length)] for n in real])
    mask, whole = block_mask(length, 2, attention_mask=padding), block_mask(length, 2)[0]
    for row, n in enumerate(real):
        for q, k in itertools.product(range(2 * length), repeat=2):
            assert bool(mask[row, q, k]) == (q == k or (bool(whole[q, k]) and k % length < n))


@pytest.mark.covering(1)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, attention, tmp_path):
    model, samples, objective = family_model(family, attn_implementation=attention), samples_of(4), Objective()
    exact, plain = both(model, samples, objective)
    check(*trainer_of(tmp_path, model, samples), exact, plain)


@pytest.mark.parametrize(
    "objective, per_block",
    [
        (Objective(norm="sequence", weight="uniform"), False),
        (Objective(norm="batch", alpha="cosine", right_shift=True), False),
        (Objective(low=0.3, high=0.8), True),  # the clipped range of the paper
        (Objective(norm="sequence", right_shift=True), True),
    ],
)
def test_objectives_in_accumulated_forwards(objective, per_block, tmp_path):
    model, samples = family_model("bert"), samples_of(6)
    exact, plain = both(model, samples, objective, per_block=per_block, size=3)
    options = dict(block_size=3, time_per_block=per_block)
    options |= dict(per_device_train_batch_size=2, gradient_accumulation_steps=3)
    check(*trainer_of(tmp_path, model, samples, objective, **options), exact, plain)


def test_a_bidirectional_model_sees_blocks_too(tmp_path):
    model, samples, objective = causal_model("Llama"), samples_of(3), Objective(right_shift=True)
    exact, plain = both(model, samples, objective)
    check(*trainer_of(tmp_path, bidirectional(model), samples, objective), exact, plain)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_block_as_long_as_the_text_is_mdlm(family, tmp_path):
    model, samples = family_model(family), samples_of(5)
    exact, plain = (mdlm.truth(model, samples, Objective(), dtype) for dtype in (torch.float64, torch.float32))
    check(*trainer_of(tmp_path, model, samples, block_size=12), exact, plain)


def test_evaluation_is_of_the_whole_data(tmp_path):
    model, samples = family_model("bert"), samples_of(5, seed=5)
    exact, plain = both(model, samples, Objective())
    options = dict(eval_dataset=samples, per_device_eval_batch_size=2)
    metrics = trainer_of(tmp_path, model, samples_of(2), **options)[0].evaluate()
    assert_sum_no_worse(metrics["eval_loss"], plain[0], exact[0])
    assert_sum_no_worse(metrics["eval_nll"], plain[1], exact[1])


def test_two_ranks_are_one_batch(tmp_path):
    """Each in two forwards; seven samples to evaluate, of which the last batch is filled up."""
    options = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=1, learning_rate=0.0)
    options |= dict(per_device_eval_batch_size=2, block_size=BLOCK)
    settings = dict(norm="sequence", kind="Whole", trainer="BD3LM", samples=8, evaluated=7, options=options)
    model, objective = model_of(runs.Whole), Objective(norm="sequence")
    exact, plain = both(model, samples_of(8), objective)
    evaluated64, evaluated32 = both(model, samples_of(7, seed=5), objective)
    for (rank,) in two_ranks(tmp_path, [settings]):
        (step,) = rank["gradients"]
        assert_no_worse({"gradient": step}, {"gradient": plain[2]}, {"gradient": exact[2]}, entries=False)
        assert_sum_no_worse(rank["evaluation"]["eval_loss"], evaluated32[0], evaluated64[0])
        assert_sum_no_worse(rank["evaluation"]["eval_nll"], evaluated32[1], evaluated64[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_no_leak(family, tmp_path):
    """Another token of x_0 in block b: blocks of x_t up to b keep every bit, later ones do not."""
    model, length = family_model(family), 11
    sample = {"input_ids": list(range(20, 20 + length)), "labels": list(range(20, 20 + length))}
    trainer, _ = trainer_of(tmp_path, model, [sample])
    (batch,) = trainer.get_train_dataloader()
    inputs = trainer._model_inputs(model, batch)
    with torch.no_grad():
        before = model(**inputs).logits[0, :length]
        for changed in range(length):
            tokens = inputs["input_ids"].clone()
            tokens[0, length + changed] = 100
            same = (model(**inputs | {"input_ids": tokens}).logits[0, :length] == before).all(-1)
            assert same.tolist() == [p // BLOCK <= changed // BLOCK for p in range(length)]


def test_what_is_masked_depends_on_the_sample_alone():
    def batch_of(rows):
        options = dict(mask_id=MASK_ID, pad_id=1, vocab_size=131, seed=SEED, block_size=BLOCK, time_per_block=True)
        collate = BD3LMCollator(base=pad_right, scheduler=LinearAlphaScheduler(), **options)
        return collate(rows)["input_ids"]

    samples = samples_of(6)
    together = batch_of(samples)
    for row, sample in enumerate(samples):
        length = len(sample["input_ids"])
        assert together[row, :length].tolist() == batch_of([sample])[0, :length].tolist()


def test_a_step_does_not_wait_for_the_device(tmp_path):
    """Padded rows too: their mask is made on the device."""
    model = family_model("bert")
    trainer, _ = trainer_of(tmp_path, model, samples_of(4))
    (batch,) = trainer.get_train_dataloader()
    assert "attention_mask" in batch
    trainer.compute_loss(model.train(), batch)
    with NoHostSync():
        trainer.compute_loss(model, batch).backward()


def test_texts_of_all_positions_of_the_model(tmp_path):
    """Two halves have more positions than the model's tables, each of them not."""
    text = {"input_ids": list(range(20, 40)), "labels": list(range(20, 40))}
    model = family_model("bert", max_position_embeddings=20)
    trainer, watch = trainer_of(tmp_path, model, [text])
    trainer.train()
    assert len(watch.seen) == 1 and bool(watch.seen[0].isfinite().all())


def test_training_lowers_the_loss(tmp_path):
    model, samples = family_model("bert"), samples_of(6)
    options = dict(eval_dataset=samples, num_train_epochs=15, learning_rate=3e-3)
    trainer, _ = trainer_of(tmp_path, model, samples, **options)
    before = trainer.evaluate()["eval_nll"]
    trainer.train()
    assert trainer.evaluate()["eval_nll"] < 0.7 * before


def test_answers_end_with_whole_blocks():
    class Collator:
        tokenizer = SimpleNamespace(eos_token_id=2)

        def __call__(self, samples):
            return {"samples": samples}

    given = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, 7, 8, 9], "attention_mask": [1] * 5},
        {"input_ids": [5, 6, 7], "labels": [5, 6, 7], "attention_mask": [1] * 3},
    ]
    before = copy.deepcopy(given)
    longer, whole = AppendEOSBlockWrapper(Collator(), block_size=3)(given)["samples"]
    assert longer == {"input_ids": [5, 6, 7, 8, 9, 2], "labels": [-100, 6, 7, 8, 9, 2], "attention_mask": [1] * 6}
    assert whole == before[1] and given == before
    with pytest.raises(ValueError, match=r"block_size.*got 0"):
        AppendEOSBlockWrapper(Collator(), block_size=0)
    Collator.tokenizer.eos_token_id = None
    with pytest.raises(ValueError, match="end-of-text token, got none from Collator"):
        AppendEOSBlockWrapper(Collator())


def test_models_that_do_not_see_what_they_are_shown(tmp_path):
    class Everything(BertForMaskedLM):
        def forward(self, input_ids, attention_mask=None, position_ids=None, **kwargs):
            return super().forward(input_ids=input_ids, position_ids=position_ids)

    samples, everything = samples_of(2), family_model("bert")
    everything.__class__ = Everything
    with pytest.raises(ValueError, match="position 0 of Everything sees 2"):
        trainer_of(tmp_path, everything, samples)[0].train()
    with pytest.raises(ValueError, match=r"takes position_ids.*Loose differ by"):
        trainer_of(tmp_path, model_of(Loose), samples)[0].train()


def test_what_is_refused(tmp_path):
    model, samples = family_model("bert"), samples_of(2)
    with pytest.raises(TypeError, match="must be a BD3LMConfig, got MDLMConfig"):
        BD3LMTrainer(config_of(tmp_path), model=model)
    with pytest.raises(ValueError, match=r"block_size.*got 0"):
        config_of(tmp_path, BD3LMConfig, block_size=0)
    for wrong in (2.5, True):
        with pytest.raises(TypeError, match=f"block_size.*got {wrong}"):
            config_of(tmp_path, BD3LMConfig, block_size=wrong)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"eager or sdpa.*'flash_attention_2'"):
        trainer_of(tmp_path, model, samples)
    with pytest.raises(ValueError, match="window in layers"):
        local = dict(use_sliding_window=True, sliding_window=4, max_window_layers=1)
        trainer_of(tmp_path, causal_model("Qwen2", **local), samples)
    if V4:
        with pytest.raises(ValueError, match="ModernBERT needs transformers 5"):
            trainer_of(tmp_path, family_model("modernbert"), samples)


def test_masks_of_query_and_key_are_refused(tmp_path):
    def collate(rows):
        batch = pad_right(rows)
        return batch | {"attention_mask": batch["attention_mask"][:, None, None]}

    trainer, _ = trainer_of(tmp_path, family_model("bert"), samples_of(2))
    trainer._collators["train"].base = collate
    with pytest.raises(ValueError, match="attention_mask must"):
        trainer.train()


def test_defaults_are_those_of_scripts():
    config = BD3LMConfig(output_dir="out", report_to="none")
    assert (config.block_size, config.time_per_block, config.time_epsilon, config.time_max) == (32, False, 1e-3, 1.0)
