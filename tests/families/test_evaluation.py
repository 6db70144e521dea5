"""Every family in front of lm-evaluation-harness: a likelihood task and a generation task on its small checkpoint."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("lm_eval")

from dllm import cli
from dllm.core.eval.generation import GenerationRequest, generate_requests
from dllm.core.eval.models import name_for
from dllm.core.samplers import DiffusionGemmaSampler
from dllm.models import get_model, get_tokenizer
from tests import diffusion_gemma_folder
from tests.core.eval import local_tasks
from tests.diffusion_gemma_models import CANVAS, needs_diffusion_gemma
from tests.families import folders
from tests.families.toys import NAMES

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = ["sums_chosen", "sums_generated"]


@pytest.mark.parametrize("name", NAMES)
def test_evaluation(name, tmp_path):
    """The model of lm-evaluation-harness is found by the family; every choice has a likelihood, every prompt a text."""
    folder = folders.write(tmp_path / "model", name)
    model = name_for(folder)
    given = dict(pretrained=folder, dtype="float32", max_new_tokens=8, exact_up_to=1, mc_num=4, device="cpu")
    found = local_tasks.evaluate(
        model, local_tasks.write(tmp_path / "tasks"), TASKS, model_args=given, limit=2, apply_chat_template=False
    )
    assert found["config"]["dllm"]["model"] == model
    for chosen in found["samples"]["sums_chosen"]:
        values = [value for ((value, _),) in chosen["resps"]]
        assert len(set(values)) == 3 and all(-math.inf < value < 0 for value in values)
    cost = found["config"]["dllm"]["cost"]["sums_generated"]
    assert cost["requests"] == 2 and cost["tokens"] > 0
    assert all(isinstance(text, str) for sample in found["samples"]["sums_generated"] for (text,) in sample["resps"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return diffusion_gemma_folder.write(tmp_path_factory.mktemp("diffusion") / "gemma")


@pytest.fixture(scope="module")
def model(folder):
    return get_model(model_name_or_path=folder, dtype="float32").eval(), get_tokenizer(model_name_or_path=folder)


@needs_diffusion_gemma
class TestDiffusionGemma:
    def harness(self, model, **settings):
        from dllm.core.eval.model_classes import DiffusionGemmaLM

        return DiffusionGemmaLM(*model, device="cpu", **settings)

    def test_generation(self, folder, tmp_path):
        assert name_for(folder) == "diffusiongemma"
        given = dict(pretrained=folder, dtype="float32", max_new_tokens=CANVAS + 3, steps=3, device="cpu")
        found = local_tasks.evaluate(
            "diffusiongemma",
            local_tasks.write(tmp_path / "tasks"),
            ["sums_generated"],
            model_args=given,
            limit=3,
            apply_chat_template=True,
        )
        record = found["config"]["dllm"]
        assert record["cost"]["sums_generated"]["forwards"] in range(3, 19)
        stated = diffusion_gemma_folder.GENERATION
        used = record["settings"]["sampler"]
        assert (used["max_denoising_steps"], used["max_new_tokens"]) == (3, CANVAS + 3)
        assert (used["t_min"], used["t_max"], used["stability_threshold"]) == (
            stated["t_min"],
            stated["t_max"],
            stated["stability_threshold"],
        )
        assert used["entropy_bound"] == 0.2 and not record["approximate_sampler"]

    def test_the_command_finds_the_model(self, folder, tmp_path, capsys):
        words = ["eval", folder, "--tasks", "sums_generated", "--include-path", str(local_tasks.write(tmp_path / "t"))]
        assert cli.main([*words, "--limit", "1", "--device", "cpu", "--output-path", str(tmp_path / "out")]) == 0
        assert "sums_generated" in capsys.readouterr().out

    def test_no_likelihood(self, model):
        from lm_eval.api.instance import Instance

        lm = self.harness(model)
        with pytest.raises(
            ValueError, match=r"diffusiongemma has no .*: it denoises canvases of random tokens, and its"
        ):
            lm.loglikelihood([Instance("loglikelihood", {}, ("a", " b"), 0, ("sums", 0, 1))])
        with pytest.raises(ValueError, match="tasks that generate texts run"):
            lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("a text",), 0, ("sums", 0, 1))])

    @pytest.mark.parametrize("name", ["mc_num", "temperature", "cfg_scale", "block_size"])
    def test_settings_that_it_does_not_have(self, model, name):
        with pytest.raises(ValueError, match=f"diffusiongemma knows no '{name}'"):
            self.harness(model, **{name: 1})

    def test_a_text_stops_at_a_stop_string_and_its_row_at_the_end_of_that_canvas(self, model):
        sampler = DiffusionGemmaSampler(*model)
        config = sampler.config_class.of(sampler.model).with_length(6 * CANVAS)
        prompts = [[2, 285, 190], [2, 78, 145, 144, 351], [2, 190]]
        requests = [GenerationRequest(prompt, seed=number) for number, prompt in enumerate(prompts)]
        whole = generate_requests(sampler, requests, config, batch_size=2)
        stops = [one.text[len(one.text) // 3 :][:4] for one in whole]
        assert all(len(stop) == 4 for stop in stops)
        asked = [request._replace(until=[stop]) for request, stop in zip(requests, stops, strict=True)]
        for batch_size in (1, 3):
            cut = generate_requests(sampler, asked, config, batch_size=batch_size)
            for stop, one, full in zip(stops, cut, whole, strict=True):
                assert one.text == full.text.partition(stop)[0]
                assert one.forwards < full.forwards and one.forwards % config.max_denoising_steps == 0
                assert one.tokens <= one.forwards // config.max_denoising_steps * CANVAS

    def test_requests_that_break_a_rule(self, model):
        sampler = DiffusionGemmaSampler(*model)
        with pytest.raises(ValueError, match="request 1: "):
            generate_requests(
                sampler, [GenerationRequest([5]), GenerationRequest([5], overrides={"max_new_tokens": 0})], batch_size=1
            )
        with pytest.raises(TypeError, match=r"request 0: .* has no setting block_size"):
            generate_requests(sampler, [GenerationRequest([5], overrides={"block_size": 4})], batch_size=1)
        with pytest.raises(ValueError, match="at least one token"):
            generate_requests(sampler, [GenerationRequest([5]), GenerationRequest([])], batch_size=1)
