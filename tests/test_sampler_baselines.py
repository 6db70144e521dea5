"""The authors' loops that the benchmarks measure against: tiny models, and counts and choices made by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from benchmarks import card_loop
from benchmarks.baselines import dream, fast_dllm, llada, mdlm, parallel
from dllm_kernels import philox
from tests import reference_samplers as judges
from tests.causal_models import causal_model
from tests.models import MASK_ID, left_padded, make_prompt, shared, tiny

EOS = 2
GEN, BLOCK = 12, 6
NEVER = 2.0  # no probability reaches it

pytestmark = pytest.mark.usefixtures("one_thread")


class Recorder:
    """A model that keeps every canvas it is called with, as the padded rows were laid out."""

    def __init__(self, model):
        self.model, self.canvases = model, []

    def __call__(self, canvas, **options):
        self.canvases.append(canvas.clone())
        return self.model(canvas, **options)

    def __getattr__(self, name):
        return getattr(self.model, name)


@pytest.fixture(scope="module")
def model():
    return shared("bert", torch.device("cpu"))


def parallel_rule(name: str) -> parallel.Rule:
    return {
        "threshold": parallel.threshold(0.1),
        "factor": parallel.factor(1.8),
        "llada2": parallel.llada2(0.1, steps=3, block_length=BLOCK),
        "entropy-bound": parallel.entropy_bound(2.0),
    }[name]


def run(name: str, model, prompt, attention_mask=None, **options) -> torch.Tensor:
    """A loop called `name` on left-padded prompts; GEN tokens, in blocks of BLOCK where it knows blocks."""
    options = {"mask_id": MASK_ID} | options
    if name == "mdlm":
        kept = torch.ones_like(prompt) if attention_mask is None else attention_mask
        inputs = [row[mask == 1] for row, mask in zip(prompt, kept, strict=True)]
        options = {"eos_id": EOS, "max_new_tokens": GEN, "block_size": BLOCK, "steps": GEN} | options
        return mdlm.sample(model, inputs, **options)
    if name == "llada":
        options = {"gen_length": GEN, "block_length": BLOCK, "steps": GEN} | options
        return llada.generate(model, prompt, attention_mask, **options)
    if name in dream.ALGORITHMS:
        options = {"max_new_tokens": GEN, "steps": 6, "alg": name, "right_shift_logits": False} | options
        return dream.diffusion_generate(model, prompt, attention_mask, **options)
    options = {"rule": parallel_rule(name), "gen_length": GEN, "block_length": BLOCK} | options
    return parallel.generate(model, prompt, attention_mask, **options)


PARALLEL = ("threshold", "factor", "llada2", "entropy-bound")
EVERY = ("mdlm", "llada", *dream.ALGORITHMS, *PARALLEL)


def committed(recorder: Recorder, final: torch.Tensor) -> list[list[int]]:
    """How many masks each step took from each row: [steps][rows]."""
    masks = [(canvas == MASK_ID).sum(dim=1) for canvas in (*recorder.canvases, final)]
    return [(before - after).tolist() for before, after in itertools.pairwise(masks)]


class TestEveryLoop:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("name", EVERY)
    def test_keeps_the_prompt_and_fills_every_mask(self, name, temperature, model):
        prompt = make_prompt(model, batch=2, length=5)
        torch.manual_seed(0)
        canvas = run(name, model, prompt, temperature=temperature)
        assert canvas.shape == (2, 5 + GEN)
        assert torch.equal(canvas[:, :5], prompt)
        assert not (canvas == MASK_ID).any()

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("name", EVERY)
    def test_padding_and_company_change_nothing(self, name, temperature):
        """Random numbers belong to a row's own positions, so they do not see where it stands either."""
        model = shared("modernbert", torch.device("cpu"))  # positions by rotation: a row may stand anywhere
        prompt, attention_mask = left_padded(model, [7, 4])
        from_left = name == "mdlm"
        noise = card_loop.PhiloxNoise([5, 9], padding=[0, 0 if from_left else 3])
        together = run(name, model, prompt, attention_mask, temperature=temperature, noise=noise)
        for row, (seed, length) in enumerate([(5, 7), (9, 4)]):
            own, noise = prompt[row : row + 1, 7 - length :], card_loop.PhiloxNoise([seed])
            alone = run(name, model, own, temperature=temperature, noise=noise)[0, length:]
            first = length if from_left else 7
            assert torch.equal(together[row, first : first + GEN], alone)

    @pytest.mark.parametrize("name", EVERY)
    def test_parts_are_marked(self, name, model):
        marks = []
        recorder = Recorder(model)
        run(name, recorder, make_prompt(model, 1, 4), mark=marks.append)
        assert marks == ["head", "transfer"] * len(recorder.canvases)


def judge(name: str, model, prompt, **settings) -> judges.Trace:
    """The plain loop of one row that the library's own samplers are judged by."""
    settings = {"mask_id": MASK_ID} | settings
    blocks = {"max_new_tokens": GEN, "block_size": BLOCK}
    if name == "mdlm":
        return judges.mdlm_sample(model, prompt, steps=GEN, **blocks, **settings)
    if name == "llada":
        return judges.llada(model, prompt, gen_length=GEN, block_length=BLOCK, steps=GEN, **settings)
    if name in dream.ALGORITHMS:
        settings = {"steps": 6, "right_shift_logits": False, "top_k": None} | settings
        return judges.dream(model, prompt, alg=name, max_new_tokens=GEN, schedule="time", **settings)
    judged_by, rule = {
        "threshold": (judges.threshold_decode, {"threshold": 0.1}),
        "factor": (judges.threshold_decode, {"factor": 1.8}),
        "llada2": (judges.llada2, {"threshold": 0.1, "steps": 3}),
        "entropy-bound": (judges.entropy_bound, {"gamma": 2.0}),
    }[name]
    return judged_by(model, prompt, **blocks, **rule, **settings)


class TestAgainstTheJudges:
    """The same tokens, on the same random numbers, as the plain loops in tests/reference_samplers give row by row."""

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("name", EVERY)
    def test_same_tokens(self, name, temperature, model):
        self.compare(name, model, temperature=temperature)

    @pytest.mark.parametrize("name", ["mdlm", "llada"])
    def test_random_order_and_guidance(self, name, model):
        self.compare(name, model, remasking="random", cfg_scale=0.6, temperature=0.5)

    @pytest.mark.parametrize("name", ["mdlm", "llada"])
    def test_suppressed_tokens(self, name, model):
        # torch.topk orders equal confidences as it likes: a token that would come last in two places is no test
        words, counts = run(name, model, make_prompt(model, 2, 5))[:, 5:].unique(return_counts=True)
        first, second = int(words[counts.argmax()]), int(words[counts.argmin()])
        options = {"suppress_tokens": [first], "begin_suppress_tokens": [second]}
        told = {"mdlm": options, "llada": {"suppressed": first, "last": (second,)}}[name]
        self.compare(name, model, told=told, **options)

    @pytest.mark.parametrize("name", dream.ALGORITHMS)
    @pytest.mark.parametrize("filters", [{"top_k": 7}, {"top_p": 0.7}, {"top_p": 0.9, "top_k": 20}])
    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    def test_filtered(self, name, filters, temperature, model):
        self.compare(name, model, temperature=temperature, right_shift_logits=True, **filters)

    @pytest.mark.parametrize("name", ["maskgit_plus", "topk_margin", "entropy"])
    def test_drawn_positions(self, name, model):
        self.compare(name, model, temperature=0.8, alg_temp=0.3)

    @staticmethod
    def compare(name, model, told=None, **settings):
        prompt = make_prompt(model, batch=2, length=5)
        noise = card_loop.PhiloxNoise([5, 9])
        temperature = {"temperature": settings.pop("temperature", 0.0)}
        got = run(name, model, prompt, noise=noise, **temperature, **(settings if told is None else told))
        for row, seed in enumerate([5, 9]):
            trace = judge(name, model, prompt[row], seed=seed, **temperature, **settings)
            difference = judges.first_difference(got[row], trace)
            assert difference is None, difference


class TestWhereTheRulesCoincide:
    """At temperature 0 with one token a step all that rank by probability are one and the same loop."""

    @pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
    @pytest.mark.parametrize("name", ["mdlm", "llada", "threshold", "factor", "llada2"])
    def test_one_surest_token_a_step(self, name, cfg_scale, model):
        prompt = make_prompt(model, batch=3, length=5)
        slowest = {
            "threshold": {"rule": parallel.threshold(NEVER)},
            "factor": {"rule": parallel.factor(-1.0)},
            "llada2": {"rule": parallel.llada2(NEVER, steps=BLOCK, block_length=BLOCK)},
        }
        card = card_loop.generate(
            model, prompt, GEN, GEN, BLOCK, cfg_scale=cfg_scale, remasking="low_confidence", mask_id=MASK_ID
        )
        assert torch.equal(run(name, model, prompt, cfg_scale=cfg_scale, **slowest.get(name, {})), card)

    def test_shifted_mdlm_reads_the_position_before(self, model):
        """One mask behind the prompt: its token is the unshifted model's word for the prompt's last position."""
        prompt = make_prompt(model, batch=1, length=5)
        canvas = mdlm.sample(
            model, list(prompt), mask_id=MASK_ID, eos_id=EOS, max_new_tokens=1, steps=1, right_shift_logits=True
        )
        with_mask = torch.cat([prompt, torch.tensor([[MASK_ID]])], dim=1)
        assert canvas[0, 5] == model(with_mask).logits[0, 4].argmax()
        dreamt = dream.diffusion_generate(model, prompt, mask_id=MASK_ID, max_new_tokens=1, steps=1)
        assert torch.equal(dreamt, canvas)


class TestMDLM:
    def test_schedule_b(self, model):
        """Ten masks in four steps: halves go to the even number, unlike the card's 3, 3, 2, 2."""
        recorder = Recorder(model)
        prompt = make_prompt(model, 2, 4)
        canvas = run("mdlm", recorder, prompt, max_new_tokens=10, block_size=10, steps=4)
        assert committed(recorder, canvas) == [[2, 2], [3, 3], [2, 2], [3, 3]]

    def test_the_last_block_is_cut_at_the_end(self, model):
        recorder = Recorder(model)
        canvas = run("mdlm", recorder, make_prompt(model, 1, 4), max_new_tokens=7, block_size=4, steps=8)
        assert committed(recorder, canvas) == [[1]] * 7  # 4 steps for 4 masks, then 4 for 3: one of them is left out
        assert canvas.shape == (1, 11)

    def test_lays_prompts_out_from_the_left(self, model):
        recorder = Recorder(model)
        run("mdlm", recorder, *left_padded(model, [5, 3]))
        ends = recorder.canvases[0]
        assert (ends[0, 5:] == MASK_ID).all() and (ends[1, 3 : 3 + GEN] == MASK_ID).all()
        assert (ends[1, 3 + GEN :] == EOS).all()

    def test_suppressed_tokens(self, model):
        prompt = make_prompt(model, 1, 5)
        words = run("mdlm", model, prompt)[0, 5:].unique().tolist()
        assert not torch.isin(run("mdlm", model, prompt, suppress_tokens=words), torch.tensor(words))[0, 5:].any()

    def test_suppressed_at_the_beginning(self, model):
        """The token may be chosen, but is committed last."""
        recorder = Recorder(model)
        prompt = make_prompt(model, 1, 5)
        first = run("mdlm", recorder, prompt, block_size=GEN)
        (place,) = (recorder.canvases[1][0] != recorder.canvases[0][0]).nonzero()[:, 0].tolist()
        recorder.canvases.clear()
        token = int(first[0, place])
        run("mdlm", recorder, prompt, block_size=GEN, begin_suppress_tokens=[token])
        assert not (recorder.canvases[1][0, 5:] == token).any()

    def test_bad_remasking(self, model):
        with pytest.raises(ValueError, match="remasking"):
            run("mdlm", model, make_prompt(model, 1, 4), remasking="none")


class TestLLaDA:
    def test_schedule_a(self, model):
        recorder = Recorder(model)
        canvas = run("llada", recorder, make_prompt(model, 2, 4), gen_length=10, block_length=10, steps=4)
        assert committed(recorder, canvas) == [[3, 3], [3, 3], [2, 2], [2, 2]]

    def test_no_end_of_text(self, model):
        """Without the option this model says the token; with it never."""
        prompt = make_prompt(model, 1, 5)
        word = int(run("llada", model, prompt)[0, 5])
        assert not (run("llada", model, prompt, suppressed=word)[0, 5:] == word).any()

    def test_end_of_text_comes_last(self):
        """The surest choice of all is forbidden to be the first one."""
        recorder = Recorder(tiny("bert"))
        prompt = make_prompt(recorder, 1, 5)
        early = run("llada", recorder, prompt, block_length=GEN)
        place = int((recorder.canvases[1][0] != recorder.canvases[0][0]).nonzero())
        recorder.canvases.clear()
        canvas = run("llada", recorder, prompt, block_length=GEN, last=(int(early[0, place]),))
        assert not (recorder.canvases[1][0, 5:] == early[0, place]).any()
        assert not (canvas == MASK_ID).any() and torch.equal(canvas[:, :5], prompt)

    @pytest.mark.parametrize(("option", "rule"), [({"steps": 5}, "divide"), ({"remasking": "none"}, "remasking")])
    def test_bad_input(self, model, option, rule):
        with pytest.raises(ValueError, match=rule):
            run("llada", model, make_prompt(model, 1, 4), **option)


class TestDream:
    def test_grid_of_times(self, model):
        """8 masks, 4 steps: 8 (1 - .75025) = 1.998, 7 (1 - .5005 / .75025) = 2.33, 5 (1 - .25075 / .5005) = 2.495."""
        recorder = Recorder(model)
        canvas = run("maskgit_plus", recorder, make_prompt(model, 2, 4), max_new_tokens=8, steps=4)
        assert committed(recorder, canvas) == [[1, 1], [2, 2], [2, 2], [3, 3]]

    @pytest.mark.parametrize("alg", ["maskgit_plus", "topk_margin", "entropy"])
    def test_the_surest_come_first(self, alg, model):
        recorder = Recorder(model)
        canvas = run(alg, recorder, make_prompt(model, 1, 5))
        for before, after in zip(recorder.canvases, [*recorder.canvases[1:], canvas], strict=True):
            p = model(before).logits[0].double().softmax(dim=-1)
            best = p.topk(2).values
            sure = {"maskgit_plus": best[:, 0], "topk_margin": best[:, 0] - best[:, 1]}
            sure = sure.get(alg, (p * p.log()).sum(dim=-1))
            masked, chosen = before[0] == MASK_ID, before[0] != after[0]
            waiting = masked & ~chosen
            if chosen.any() and waiting.any():
                assert sure[chosen].min() > sure[waiting].max()
            assert torch.equal(after[0][chosen], p.argmax(dim=-1)[chosen])

    def test_origin_reveals_each_mask_by_itself(self, model):
        """Where the uniform number of a place is below 1 - s / t; at the last step everywhere."""
        recorder = Recorder(model)
        prompt = make_prompt(model, 2, 5)
        canvas = run("origin", recorder, prompt, noise=card_loop.PhiloxNoise([1, 2]))
        times = torch.linspace(1, 1e-3, 7)
        for step, after in enumerate([*recorder.canvases[1:], canvas]):
            u = philox.uniform(
                torch.tensor([[1], [2]]), torch.arange(5 + GEN), torch.tensor(step), philox.RANDOM_CONFIDENCE
            )
            before = recorder.canvases[step] == MASK_ID
            revealed = u < 1 - times[step + 1] / times[step] if step < 5 else before
            assert torch.equal(before & (after != MASK_ID), before & revealed)

    def test_sharp_position_temperature_is_none(self, model):
        torch.manual_seed(0)
        prompt = make_prompt(model, 2, 5)
        assert torch.equal(run("entropy", model, prompt, alg_temp=1e-9), run("entropy", model, prompt))

    def test_position_temperature_draws(self, model):
        prompt, recorder = make_prompt(model, 1, 5), Recorder(model)
        torch.manual_seed(0)
        places = set()
        for _ in range(8):
            recorder.canvases.clear()
            run("maskgit_plus", recorder, prompt, max_new_tokens=4, steps=3, alg_temp=1e6)
            places.add(tuple((recorder.canvases[1] != recorder.canvases[0]).nonzero()[:, 1].tolist()))
        assert len(places) > 1

    def test_one_token_to_choose_from_is_no_choice(self, model):
        prompt = make_prompt(model, 2, 5)
        # its probability is then 1 everywhere: only the tokens of the first step can be compared
        drawn = run("maskgit_plus", model, prompt, steps=1, temperature=1.0, top_k=1)
        assert torch.equal(drawn, run("maskgit_plus", model, prompt, steps=1))
        nearly = run("maskgit_plus", model, prompt, steps=1, temperature=1.0, top_p=1e-9)
        assert torch.equal(nearly, drawn)

    def test_top_p_against_its_words(self):
        """Token by token: a token stays if those before it hold at most p."""
        logits = torch.randn(20, 9, generator=torch.Generator().manual_seed(0))
        kept = dream.keep_top_p(logits, 0.7).isfinite()
        for row, p in zip(kept, logits.double().softmax(dim=-1), strict=True):
            for token in range(9):
                assert row[token] == bool(p[p > p[token]].sum() <= 0.7)

    def test_bad_algorithm(self, model):
        with pytest.raises(ValueError, match="alg must be one of origin"):
            dream.diffusion_generate(model, make_prompt(model, 1, 4), mask_id=MASK_ID, alg="maskgit")


class TestParallel:
    @pytest.mark.parametrize(
        ("rule", "forwards"),
        [
            (parallel.threshold(NEVER), GEN),
            (parallel.threshold(0.0), 2),
            (parallel.factor(-1.0), GEN),
            (parallel.factor(100.0), 2),
            (parallel.llada2(NEVER, steps=3, block_length=BLOCK), 6),
            (parallel.llada2(-1.0, steps=3, block_length=BLOCK), 2),
            (parallel.entropy_bound(-1.0), 2 * BLOCK),
            (parallel.entropy_bound(torch.inf), 2),
        ],
    )
    def test_extremes(self, rule, forwards, model):
        recorder = Recorder(model)
        run("threshold", recorder, make_prompt(model, 2, 4), rule=rule)
        assert len(recorder.canvases) == forwards

    def test_counts_by_hand(self):
        sure = torch.tensor([0.95, 0.9, 0.6, 0.5])
        assert [parallel.threshold(t).count(sure, 0) for t in (0.9, 0.55, 0.99)] == [2, 3, 1]
        # 1 - f / (r + 1) for f = 1: 0.5, 0.67, 0.75, 0.8, and the third is below
        assert [parallel.factor(f).count(sure, 0) for f in (1.0, 0.01, 3.0)] == [2, 1, 4]
        assert [parallel.llada2(0.9, 2, 7).count(sure, step) for step in (0, 1)] == [4, 3]
        assert parallel.llada2(0.55, 2, 4).count(sure, 0) == 3
        unsure = torch.tensor([0.25, 0.5, 1.0])
        assert [parallel.entropy_bound(g).count(unsure, 0) for g in (0.0, 0.25, 0.7, 0.75)] == [1, 2, 2, 3]

    @pytest.mark.parametrize("name", PARALLEL)
    def test_commits_what_the_rule_says(self, name, model):
        """Recomputed in float64 from every canvas, row by row."""
        recorder, rule = Recorder(model), parallel_rule(name)
        canvas = run(name, recorder, make_prompt(model, 2, 5))
        steps, blocks = 0, set()
        for before, after in zip(recorder.canvases, [*recorder.canvases[1:], canvas], strict=True):
            p = model(before).logits.detach().double().softmax(dim=-1)
            value = p.amax(dim=-1) if rule.order == "confidence" else -(p * p.log()).sum(dim=-1)
            block = int((before == MASK_ID).any(dim=0).nonzero()[0] - 5) // BLOCK
            steps = steps + 1 if block in blocks else 0
            blocks.add(block)
            for row in range(2):
                eligible = [c for c in range(5 + block * BLOCK, 5 + (block + 1) * BLOCK) if before[row, c] == MASK_ID]
                eligible.sort(key=lambda c, row=row: float(value[row, c]), reverse=rule.order == "confidence")
                taken = {c for c in eligible if after[row, c] != MASK_ID}
                count = rule.count(value[row, eligible], steps) if eligible else 0
                assert taken == set(eligible[:count])
                assert (before[row] != after[row]).sum() == len(taken)

    def test_a_model_that_says_mask_ends(self):
        model = tiny("bert")
        with torch.no_grad():
            model.get_output_embeddings().bias[MASK_ID] += 1e4
        recorder = Recorder(model)
        run("threshold", recorder, make_prompt(model, 1, 4))
        assert len(recorder.canvases) == GEN

    def test_bad_lengths(self, model):
        with pytest.raises(ValueError, match="divide"):
            run("threshold", model, make_prompt(model, 1, 4), block_length=5)


class TestFastDLLM:
    """On a causal architecture, which keeps keys and values."""

    @pytest.mark.parametrize("cfg_scale", [0.0, 0.5])
    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    @pytest.mark.parametrize("rule", ["threshold", "factor"])
    @pytest.mark.parametrize("cache", fast_dllm.CACHES)
    def test_against_the_judge(self, cache, rule, temperature, cfg_scale):
        """The judge runs the layers by hand, row by row."""
        model, limit = causal_model(), {"threshold": 0.2, "factor": 2.2}[rule]
        prompt, attention_mask = left_padded(model, [7, 4])
        noise = card_loop.PhiloxNoise([5, 9], padding=[0, 3])
        options = {"mask_id": MASK_ID, "temperature": temperature, "cfg_scale": cfg_scale}
        blocks = {"gen_length": GEN, "block_length": BLOCK, "noise": noise}
        got = fast_dllm.generate(
            model, prompt, attention_mask, cache=cache, rule=getattr(parallel, rule)(limit), **blocks, **options
        )
        for row, (seed, padding) in enumerate([(5, 0), (9, 3)]):
            blocks = {"max_new_tokens": GEN, "block_size": BLOCK, "seed": seed, rule: limit}
            trace = judges.fast_dllm(model, prompt[row, padding:], cache=cache, **blocks, **options)
            difference = judges.first_difference(got[row, padding:], trace)
            assert difference is None, difference

    def test_what_runs(self):
        """The canvas first, then the block alone, or with what follows it."""
        prompt, widths = make_prompt(causal_model(), 1, 5), {}
        for cache in fast_dllm.CACHES:
            recorder = Recorder(causal_model())
            options = {"mask_id": MASK_ID, "gen_length": GEN, "block_length": BLOCK}
            fast_dllm.generate(recorder, prompt, cache=cache, rule=parallel.threshold(NEVER), **options)
            widths[cache] = [canvas.shape[1] for canvas in recorder.canvases]
        assert widths["dual"] == 2 * [5 + GEN, *[BLOCK] * (BLOCK - 1)]
        assert widths["prefix"] == [5 + GEN, *[GEN] * (BLOCK - 1), 5 + GEN, *[BLOCK] * (BLOCK - 1)]

    @pytest.mark.parametrize(("option", "rule"), [({"gen_length": 5}, "divide"), ({"cache": "block"}, "cache must be")])
    def test_bad_input(self, option, rule):
        options = {"cache": "dual", "gen_length": GEN, "block_length": BLOCK, "mask_id": MASK_ID} | option
        with pytest.raises(ValueError, match=rule):
            fast_dllm.generate(causal_model(), torch.tensor([[5]]), rule=parallel.threshold(1.0), **options)
