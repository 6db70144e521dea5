"""The models of the harness, through lm-evaluation-harness itself, on local tasks of every output type."""

from __future__ import annotations

import math

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from dllm.core.eval import MODEL_CLASSES, model_classes
from dllm.core.eval.jobs import seed_of
from dllm.core.likelihood import Target, log_likelihoods
from dllm.core.samplers import MDLMSampler
from dllm.demo.shipped import SHIPPED
from tests.core.eval import local_tasks
from tests.core.eval.local_tasks import DOCUMENTS, TASKS

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = list(TASKS)


def request(kind, *arguments, doc_id=0, repeats=1, task="sums"):
    return Instance(kind, {}, arguments, 0, (task, doc_id, repeats))


@pytest.fixture(scope="module")
def results(tasks, shipped):
    """The shipped model on all local tasks, by its name for lm-evaluation-harness."""
    model_args = dict(pretrained=str(SHIPPED), dtype="float32", max_new_tokens=16, batch_size=2)
    return local_tasks.evaluate("bert", tasks, ALL, model_args=model_args, apply_chat_template=True, device="cuda:0")


def test_every_output_type(results, shipped):
    """The shipped model knows its sums; a device that is not there is the CPU."""
    found = results["results"]
    assert found["sums_generated"]["exact_match,last"] == 1.0
    assert found["sums_chosen"]["acc,none"] == 1.0
    assert 0 < found["sums_last_word"]["perplexity,none"] < math.inf
    assert 0 < found["sums_text"]["bits_per_byte,none"] < 60
    record = results["config"]["dllm"]
    assert record["model"] == "bert" and record["sampler"] == "MDLMSampler"
    assert record["settings"]["sampler"]["steps"] == 128 and record["settings"]["likelihood"]["mc_num"] == 64
    assert record["given"] == ["batch_size", "device", "dtype", "max_new_tokens", "model_name_or_path"]
    assert {"dllm", "lm_eval", "torch", "transformers"} <= set(record["versions"])
    cost = record["cost"]["sums_generated"]
    assert cost["requests"] == len(DOCUMENTS) and cost["forwards"] > 0 < cost["tokens_per_second"]


def test_samples_are_what_sampler_and_likelihood_say(results, shipped):
    """The harness adds nothing: the same texts and numbers come from the sampler and from the likelihood."""
    model, tokenizer = shipped
    samples = results["samples"]
    sampler = MDLMSampler(model, tokenizer)
    for sample in samples["sums_generated"]:
        prompt = tokenizer(sample["arguments"][0][0], add_special_tokens=False)["input_ids"]
        canvas = sampler.sample([prompt], max_new_tokens=16, steps=16, block_size=16)[0, len(prompt) :]
        text = tokenizer.decode(canvas, skip_special_tokens=True).partition(".")[0]
        assert sample["resps"] == [[text]]
    for sample in samples["sums_chosen"]:
        for (context, target), ((value, greedy),) in zip(sample["arguments"], sample["resps"], strict=True):
            head = context.rstrip()
            whole = tokenizer(context + target, add_special_tokens=False)["input_ids"]
            count = len(tokenizer(head, add_special_tokens=False)["input_ids"])
            seed = seed_of(1234, "sums_chosen", sample["doc_id"], 0)
            (estimate,) = log_likelihoods(model, [Target(whole[:count], whole[count:], seed)], tokenizer=tokenizer)
            assert value == pytest.approx(estimate.log_likelihood, abs=1e-4) and greedy is False


@pytest.mark.parametrize("name", ["llada", "dream", "a2d_mdlm"])
def test_official_checkpoints(name, tasks, toys):
    """Small official checkpoints, random as they are, run every output type; an object gives what the name gives."""
    folder = toys[{"a2d_mdlm": "a2d-qwen3"}.get(name, name)]
    given = dict(pretrained=folder, dtype="float32", max_new_tokens=8, steps=4, mc_num=4, exact_up_to=1, device="cpu")
    if name != "dream":
        given |= dict(block_size=4)
    by_name = local_tasks.evaluate(name, tasks, ALL, model_args=dict(given), limit=2)
    lm = get_model(name)(**given, batch_size=5)
    assert isinstance(lm, getattr(model_classes, MODEL_CLASSES[name]))
    by_object = local_tasks.evaluate(lm, tasks, ALL, limit=2)
    for task in ALL:
        first, second = (run["samples"][task] for run in (by_name, by_object))
        for one, other in zip(first, second, strict=True):
            assert str(one["resps"])[:40] == str(other["resps"])[:40]
    assert math.isfinite(by_name["results"]["sums_text"]["bits_per_byte,none"])


def test_a_score_does_not_depend_on_the_batch_size(bert):
    requests = [
        request(
            "generate_until", document["question"], {"until": ["."], "do_sample": True, "temperature": 1.0}, doc_id=n
        )
        for n, document in enumerate(DOCUMENTS)
    ]
    texts = {tuple(bert(max_new_tokens=8, batch_size=size, seed=3).generate_until(requests)) for size in (1, 3, 8)}
    assert len(texts) == 1
    assert tuple(bert(max_new_tokens=8, seed=4).generate_until(requests)) not in texts


def test_repeats_have_seeds_of_their_own(bert):
    """A document that is sampled several times gets several answers; choices of a question share a seed."""
    lm = bert(max_new_tokens=8, seed=3)
    again = request("generate_until", "What", {"until": [], "do_sample": True, "temperature": 2.0}, repeats=4)
    assert len({job.seed for job in lm.jobs("generate_until", [again] * 4)}) == 4
    assert len(set(lm.generate_until([again] * 4))) > 1
    choices = [request("loglikelihood", "6 * 7 =", f" {n}") for n in (41, 42, 43)]
    jobs = lm.jobs("loglikelihood", choices)
    assert len({job.seed for job in jobs}) == 1 and not any(job.alone for job in jobs)
    # a request that evens out the processes of a run is the last one once more
    assert len({job.seed for job in lm.jobs("loglikelihood", [*choices, choices[-1]])}) == 1


def test_greedy(bert):
    """Checked for a target that stands alone, as LAMBADA's does; 0.1's default was never."""
    prompt = bert().apply_chat_template([{"role": "user", "content": "What is 12 * 4?"}])
    alone = request("loglikelihood", prompt + "12 * 4 =", " 48")
    wrong = request("loglikelihood", prompt + "12 * 4 =", " 49", doc_id=1)
    assert [greedy for _, greedy in bert().loglikelihood([alone, wrong])] == [True, False]
    assert [greedy for _, greedy in bert(is_check_greedy=False).loglikelihood([alone, wrong])] == [False, False]


def test_chat_templates(bert, toys):
    lm, question = bert(), {"role": "user", "content": "Write a sum."}
    opened = [question, {"role": "assistant", "content": "Here it is:"}]
    assert lm.apply_chat_template([question]).endswith("[Answer]\n")
    assert lm.apply_chat_template(opened, add_generation_prompt=False).endswith("[Answer]\nHere it is:")
    closed = lm.apply_chat_template([question], add_generation_prompt=False)
    assert closed.endswith("[/Question]\n\n")
    assert lm.chat_template(True) == lm.chat_template("True") == lm.tokenizer.chat_template
    assert lm.chat_template(False) == lm.chat_template("False") == ""
    with pytest.raises(ValueError, match="apply_chat_template must be True or False"):
        lm.chat_template("short")
    assert lm.tokenizer_name and "/" not in lm.tokenizer_name
    llada = model_classes.LLaDALM(pretrained=toys["llada"], device="cpu")
    text = llada.apply_chat_template(opened, add_generation_prompt=False)
    assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\nHere it is:")


def test_dream_with_escape_until(toys):
    """As in the Slurm scripts of 0.1: stop strings are not applied and special tokens stay in the text."""
    given = dict(pretrained=toys["dream"], device="cpu", max_new_tokens=8, steps=8, temperature=1.0, seed=0)
    (whole,) = model_classes.DreamLM(**given).generate_until([request("generate_until", "a text", {"until": []})])
    stops = request("generate_until", "a text", {"until": [whole[2]]})
    (cut,) = model_classes.DreamLM(**given).generate_until([stops])
    assert len(cut) < len(whole)
    (kept,) = model_classes.DreamLM(**given, escape_until=True).generate_until([stops])
    assert kept.startswith(whole)


def test_the_published_likelihood(bert):
    """A flag away; its noise is of the size that the exact sum does without."""
    asked = [request("loglikelihood", "6 * 7 = ", f"{n} is the answer", doc_id=n) for n in (41, 42)]
    exact = bert(exact_up_to=6).loglikelihood(asked)
    published = bert(likelihood="as-published", mc_num=256, batch_size=32, seed=1).loglikelihood(asked)
    for (one, _), (other, _) in zip(exact, published, strict=True):
        assert one != other and other == pytest.approx(one, rel=0.35)


def test_one_forward_for_each_token(toys):
    """By 0.1's name for it. Two tokens have two orders, and the exact sum over masks is the mean of both."""
    given = dict(pretrained=toys["dream"], device="cpu", sampling_eps=0.0)
    asked = [request("loglikelihood", "a text", " b")]  # two tokens of the toy's
    exact, *both = (
        model_classes.DreamLM(**given, nll_type=kind).loglikelihood(asked)[0][0] for kind in ("mc", "ar_ftb", "ar_btf")
    )
    assert exact == pytest.approx(sum(both) / 2, rel=1e-5) and abs(both[0] - both[1]) > 1e-3


def test_models_of_blocks(toys):
    """Their likelihood is the sum over blocks, for which their size must be known."""
    asked = [request("loglikelihood", "a text", " b")]
    with pytest.raises(ValueError, match="a2d_bd3lm needs the size of the model's blocks for log-likelihoods"):
        model_classes.A2DBD3LMLM(pretrained=toys["a2d-qwen3"], device="cpu").loglikelihood(asked)
    ((value, _),) = model_classes.LLaDA2LM(pretrained=toys["llada2"], device="cpu").loglikelihood(asked)
    assert -40 < value < 0


def test_errors_name_the_document(bert):
    with pytest.raises(ValueError, match="sums, document 7: a target must have at least one token"):
        bert().loglikelihood([request("loglikelihood", "a", " b"), request("loglikelihood", "a", "", doc_id=7)])
    with pytest.raises(ValueError, match="model and tokenizer must be given together"):
        model_classes.BertLM(torch.nn.Linear(1, 1))
    with pytest.raises(OSError):
        model_classes.BertLM(pretrained="/no/such/folder")


def test_resumed_from_lm_evals_own_cache(bert, tmp_path, tasks):
    """Every answer is told to lm-evaluation-harness's cache as it comes."""
    lm = bert(max_new_tokens=16)
    cache = str(tmp_path / "cache")
    first = local_tasks.evaluate(lm, tasks, ALL, use_cache=cache)["results"]
    fresh = bert(max_new_tokens=16)
    second = local_tasks.evaluate(fresh, tasks, ALL, use_cache=cache)["results"]
    assert first == second and fresh.usage == {}


def test_partial_answers_reach_the_cache(bert):
    told = []

    class Hook:
        def add_partial(self, kind, arguments, result):
            told.append((kind, arguments, result))

    lm = bert(max_new_tokens=16)
    lm.set_cache_hook(Hook())
    lm.loglikelihood([request("loglikelihood", "6 * 7 =", " 42")])
    lm.loglikelihood_rolling([request("loglikelihood_rolling", "6 * 7 = 42")])
    lm.generate_until([request("generate_until", "6 * 7 =", {"until": []})])
    assert [kind for kind, _, _ in told] == ["loglikelihood", "loglikelihood_rolling", "generate_until"]
    assert [type(result) for _, _, result in told] == [tuple, float, str]
