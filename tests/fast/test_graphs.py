"""Graph mode. What capture does needs a GPU; what surrounds it does not: on a CPU a stand-in for the captured graph
runs the step on the captured memory, so that a state not carried over, not reset or not read back shows here too."""

import contextlib
import gc
import itertools
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch

from dllm.core import samplers
from dllm.fast import capture, generate
from dllm.fast.sampling import graphs
from tests import graph_stand_in
from tests.cuda_stand_in import CUDA, Device, Graph, Stream
from tests.models import MASK_ID, favour, tiny

ARGUMENTS = dict(steps=8, gen_length=16, block_length=8, mask_id=MASK_ID, seed=3)


def prompts(rows, columns, seed=0):
    return torch.randint(5, 97, (rows, columns), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def stand_in(monkeypatch, one_thread):
    """Graph mode on the CPU."""
    made = graph_stand_in.install_sampling(monkeypatch)
    yield made
    assert not made.foreign and made.left == 0


@pytest.fixture
def captures(stand_in):
    """One entry for each capture."""
    return stand_in.captured


@pytest.mark.parametrize("remasking", ["low_confidence", "random", "none"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_replays_give_the_eager_tokens(captures, remasking, temperature, cfg_scale):
    model = tiny("modernbert")
    options = dict(remasking=remasking, temperature=temperature, cfg_scale=cfg_scale, **ARGUMENTS)
    for seed, rows in itertools.product((0, 1), (1, 3)):
        prompt = prompts(rows, 6, seed)
        eager = generate(model, prompt, cuda_graph=False, **options)
        graphed, stats = generate(model, prompt, return_stats=True, **options)
        assert stats.mode == "graph" and stats.body_seconds is None
        assert torch.equal(graphed, eager)
    assert len(captures) == 2  # one for each number of rows; the second prompts replay


SAMPLERS = {
    "MDLMSampler": dict(block_size=5, steps=7, remasking="random", stochastic_transfer=True),
    "LLaDASampler": dict(block_size=6, steps=6, confidence_eos_eot_inf=True, cfg_scale=0.5),
    "DreamSampler": dict(alg="entropy", alg_temp=0.3, steps=6, top_k=None),
    "RND1Sampler": dict(steps=6, greedy=True, top_k=9, top_p=0.9),
    "ThresholdSampler": dict(block_size=5, threshold=0.3),
    "LLaDA2Sampler": dict(block_size=5, threshold=0.3, steps=4),
    "EntropyBoundSampler": dict(block_size=5, gamma=2.0),
}


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_replay_one_step(captures, name, stops):
    """Blocks, steps and stops of every row are on the device: one captured step serves them, and the next call."""
    tokenizer = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=40, pad_token_id=1)
    sampler = getattr(samplers, name)(favour(tiny("bert"), 40, 4.0), tokenizer)
    options = dict(max_new_tokens=12, temperature=0.8, return_dict=True, stop_at_eos=stops, **SAMPLERS[name])
    for seed in (0, 1):
        rows = [row.tolist()[:length] for row, length in zip(prompts(3, 7, seed), (7, 2, 5), strict=True)]
        eager = sampler.sample(rows, seed=seed, cuda_graph=False, **options)
        graphed = sampler.sample(rows, seed=seed, **options)
        assert graphed.stats.mode == "graph" and torch.equal(graphed.sequences, eager.sequences)
        assert graphed.stats.row_forwards == eager.stats.row_forwards
    assert len(captures) == 1


@pytest.mark.parametrize(("steps", "replays"), [(8, [4, 4]), (6, [4, 1, 1]), (2, [1, 1])])
def test_several_steps_are_one_replay(stand_in, monkeypatch, steps, replays):
    model, prompt = tiny("bert"), prompts(2, 5)
    options = {**ARGUMENTS, "steps": steps, "temperature": 0.7}
    eager = generate(model, prompt, cuda_graph=False, **options)
    assert torch.equal(generate(model, prompt, **options), eager)
    assert stand_in.replayed == [1] * steps  # a short call: not worth it
    monkeypatch.setattr(graphs, "WORTH_SEVERAL", 0)
    stand_in.replayed.clear()
    out, stats = generate(model, prompt, return_stats=True, **options)
    assert torch.equal(out, eager) and stand_in.replayed == replays
    assert stats.forwards == steps and stats.row_forwards == [steps] * 2 and stats.idle_forwards == 0
    stand_in.replayed.clear()
    seen = []
    generate(model, prompt, on_step=lambda step: seen.append(step.canvas), **options)
    assert stand_in.replayed == [1] * steps == [1] * len(seen)  # somebody looks at each
    assert len(graphs.CACHE) == 1 and len(stand_in.captured) == len({1, *replays})


@pytest.mark.parametrize("name", ["MDLMSampler", "LLaDA2Sampler", "DreamSampler"])
def test_a_state_that_has_finished_stays(stand_in, monkeypatch, name):
    """Steps that a replay has too many of change nothing but what the live view reads, which has one step a replay."""
    monkeypatch.setattr(graphs, "WORTH_SEVERAL", 0)
    tokenizer = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=40, pad_token_id=1)
    sampler = getattr(samplers, name)(favour(tiny("bert"), 40, 4.0), tokenizer)
    rows = [row.tolist()[:length] for row, length in zip(prompts(3, 7), (7, 2, 5), strict=True)]
    sampler.sample(rows, seed=0, max_new_tokens=12, temperature=0.8, stop_at_eos=True, **SAMPLERS[name])
    (steps,) = graphs.CACHE._steps.values()
    before = steps.state.copy().tensors()
    assert bool((steps.state.block >= steps.state.blocks).all()) and bool((steps.state.row_steps > 0).all())
    for replay in steps.replays.values():
        replay()
    for name, tensor in steps.state.tensors().items():
        assert name in ("start", "proposals", "confidence") or torch.equal(tensor, before[name]), name


def test_steps_that_are_idle(stand_in, monkeypatch):
    monkeypatch.setattr(graphs, "WORTH_SEVERAL", 0)
    model = favour(tiny("bert"), 40, 100.0)
    options = dict(eos_token_id=40, return_stats=True, **ARGUMENTS)
    eager, ran = generate(model, prompts(2, 4), cuda_graph=False, **options)
    out, stats = generate(model, prompts(2, 4), **options)
    assert torch.equal(out, eager) and stats.row_forwards == ran.row_forwards and ran.idle_forwards == 0
    assert stats.forwards == stats.idle_forwards + max(ran.row_forwards)
    assert set(stand_in.replayed) == {4} and stats.idle_forwards == -max(ran.row_forwards) % 4 > 0


def test_a_capture_leaves_the_state(stand_in, monkeypatch):
    """Though its warm-ups run the step, and though it may come in the middle of a call."""
    real, captured = graphs.capture_steps, []

    def capture_steps(step, count, state, pool):
        before = state.copy().tensors()
        replay = real(step, count, state, pool)
        for name, tensor in state.tensors().items():
            assert name in ("start", "proposals", "confidence") or torch.equal(tensor, before[name]), name
        captured.append(int(state.row_steps.max()))
        return replay

    monkeypatch.setattr(graphs, "capture_steps", capture_steps)
    monkeypatch.setattr(graphs, "WORTH_SEVERAL", 0)
    generate(tiny("bert"), prompts(1, 5), **ARGUMENTS | dict(steps=6))
    assert captured == [0, 4]


def test_what_capturing_costs_is_told(captures, monkeypatch):
    monkeypatch.setattr(capture, "bytes_of", lambda handle, device: 1000 * len(captures))
    model, options = tiny("bert"), dict(return_stats=True, **ARGUMENTS)
    first, again, other = (generate(model, prompts(1, n), **options)[1] for n in (5, 5, 6))
    assert 0 < first.capture_seconds < first.seconds and other.capture_seconds > 0 == again.capture_seconds
    assert (first.graph_bytes, again.graph_bytes, other.graph_bytes) == (1000, 1000, 2000)  # shared by all
    eager = generate(model, prompts(1, 5), cuda_graph=False, **options)[1]
    assert (eager.capture_seconds, eager.graph_bytes) == (0.0, 0)


def test_memory_is_bounded(captures, monkeypatch):
    """A pool that holds too much goes with all its graphs before another shape is captured."""
    model, handles, held = tiny("bert"), iter(range(9)), {}
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr(capture, "bytes_of", lambda handle, device: held.get(handle, 0))
    monkeypatch.setattr(capture, "memory_of", lambda device: 800)

    def call(columns):
        stats = generate(model, prompts(1, columns), return_stats=True, **ARGUMENTS)[1]
        return len(graphs.CACHE), next(reversed(graphs.CACHE._steps.values())).pool.handle, stats.graph_bytes

    held[0] = 100
    assert call(4) == (1, 0, 100) and call(5) == (2, 0, 100)
    held[0] = 101
    assert call(6) == (3, 0, 101)  # 100 when it began
    assert call(4) == (3, 0, 101)  # captured before: it costs nothing more
    held[1] = 500
    assert call(7) == (1, 1, 500)  # what one shape needs it has


def test_a_pool_goes_with_its_last_graph(captures, monkeypatch):
    """torch refuses to capture into a pool of which no graph is left."""
    handles = iter(range(9))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    for expected in (0, 1):
        model = tiny("bert")
        generate(model, prompts(1, 4), **ARGUMENTS)
        assert [steps.pool.handle for steps in graphs.CACHE._steps.values()] == [expected]
        del model
        gc.collect()


def test_streams_share_nothing(captures, monkeypatch):
    """Graphs that may run at the same time may not work on the same memory."""
    model, streams, handles = tiny("bert"), iter([7, 7, 8, 7]), iter(range(9))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr(capture, "stream_of", lambda device: next(streams))
    for columns, captured, pool in ((4, 1, 0), (5, 2, 0), (5, 3, 1), (5, 3, 0)):
        generate(model, prompts(1, columns), **ARGUMENTS)
        assert len(captures) == captured and next(reversed(graphs.CACHE._steps.values())).pool.handle == pool


def test_bytes_of_a_pool(monkeypatch):
    segments = [((0, 0), 7), ((0, 3), 20), ((0, 3), 1)]
    rows = [{"segment_pool_id": pool, "total_size": size} for pool, size in segments]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: rows)
    for backend, expected in (("native", 21), ("cudaMallocAsync", 0)):
        monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda backend=backend: backend)
        assert capture.bytes_of((0, 3), torch.device("cuda", 0)) == expected
    assert capture.bytes_of((0, 3), torch.device("cpu")) == 0


def test_the_history_of_allocations_is_not_read(monkeypatch):
    """torch 2.11 and later have a say in it."""
    asked = []
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "native")
    monkeypatch.setattr(
        torch.cuda, "memory_snapshot", lambda mempool_id=None, include_traces=True: asked.append(include_traces) or []
    )
    assert capture.bytes_of((0, 3), torch.device("cuda", 0)) == 0 and asked == [False]


def test_a_compiled_model(captures, monkeypatch):
    """Its graphs are its own, and read the weights that it shares with the model it was made of."""
    monkeypatch.setattr(graphs, "WORTH_SEVERAL", 0)
    model, prompt, options = tiny("bert"), prompts(2, 5), dict(temperature=0.5, **ARGUMENTS)
    compiled = torch.compile(model, backend="eager")
    eager = generate(model, prompt, cuda_graph=False, **options)
    assert torch.equal(generate(compiled, prompt, cuda_graph=False, **options), eager)
    assert torch.equal(generate(compiled, prompt, **options), eager) and len(captures) == 1
    assert torch.equal(generate(model, prompt, **options), eager) and len(captures) == 2
    assert torch.equal(generate(compiled, prompt, **options), eager) and len(captures) == 2
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(-1)
    changed = generate(model, prompt, cuda_graph=False, **options)
    assert torch.equal(generate(compiled, prompt, **options), changed) and len(captures) == 2
    assert not torch.equal(changed, eager)


def test_padded_rows_and_early_stop(captures):
    model, prompt = favour(tiny("bert"), 40, 6.0), prompts(4, 7)
    padding = torch.tensor([[1] * 7, [0] * 3 + [1] * 4, [0] * 6 + [1], [0] + [1] * 6])
    options = dict(attention_mask=padding, eos_token_id=40, temperature=1.0, **ARGUMENTS)
    assert torch.equal(generate(model, prompt, **options), generate(model, prompt, cuda_graph=False, **options))


def test_a_batch_that_has_finished_stops(captures):
    model = favour(tiny("bert"), 40, 100.0)
    out, stats = generate(model, prompts(2, 4), eos_token_id=40, return_stats=True, **ARGUMENTS)
    assert stats.forwards < 8 and bool((out[:, 4:] == 40).all()) and stats.useful_tokens == 2


def test_what_makes_a_new_bucket(captures):
    model, options = tiny("bert"), dict(ARGUMENTS)
    calls = itertools.count(1)

    def call(expect_capture, columns=5, **changed):
        before = len(captures)
        generate(model, prompts(2, columns, next(calls)), **{**options, **changed})
        assert (len(captures) > before) == expect_capture

    call(True)
    call(False)  # other prompts and seeds replay
    call(False, seed=99)
    call(True, columns=6)
    call(True, temperature=0.5)
    call(False, temperature=0.5)
    call(False)
    with torch.no_grad():
        head = model.get_output_embeddings()
        head.weight.mul_(0.5)
        call(False)  # changed in place: the graph reads the new values
        head.weight.data = head.weight.data.clone()
        call(True)  # other memory: never stale
    model.train()
    call(True)
    norm = model.bert.encoder.layer[0].output.LayerNorm
    norm.eps = 0.5  # what a forward reads in Python, as adapters do that are switched off
    call(True)
    call(False)
    hook = norm.register_forward_hook(lambda module, given, output: -output)
    call(True)
    hook.remove()
    call(False)
    model.config.cap = 3.0
    call(True)


def test_weights_of_another_dtype_at_the_same_place():
    """What a model was given before, it may be given again: bfloat16, float32, then float16."""
    model, device = tiny("bert").bfloat16(), torch.device("cpu")
    before = capture.capture_conditions(model, device)
    assert capture.capture_conditions(model, device) == before
    for weight in (*model.parameters(), *model.buffers()):
        if weight.is_floating_point():
            weight.data = weight.data.view(torch.float16)
    assert capture.capture_conditions(model, device) != before


def test_weights_elsewhere(captures, caplog):
    """A model that is spread over devices, or fetched for each forward, is not captured: CUDA would break it off."""
    model, prompt = tiny("bert"), prompts(1, 5)
    model.spare = torch.nn.Parameter(torch.empty(2, device="meta"))
    assert generate(model, prompt, return_stats=True, **ARGUMENTS)[1].note.endswith(
        "not all weights lie on cpu, some lie on meta"
    )
    assert "some lie on meta" in caplog.text and not captures
    with pytest.raises(RuntimeError, match="cuda_graph=True, but the step cannot be captured: not all weights lie on"):
        generate(model, prompt, cuda_graph=True, **ARGUMENTS)


def test_threads_take_turns_at_a_captured_step(captures, monkeypatch):
    """While one has claimed it and is loading its state, another finds it busy."""
    model, prompt, found = tiny("bert"), prompts(2, 5), []
    expected = [
        generate(model, prompt, cuda_graph=False, **ARGUMENTS | dict(seed=seed, temperature=1.0)) for seed in (1, 2)
    ]
    generate(model, prompt, temperature=1.0, **ARGUMENTS)
    load = graphs.CapturedSteps.load

    def call(seed):
        options = ARGUMENTS | dict(seed=seed, temperature=1.0, return_stats=True)
        found.append((seed, *generate(model, prompt, **options)))

    def slowly(steps, state):
        load(steps, state)
        if not found and threading.current_thread() is threading.main_thread():
            other = threading.Thread(target=call, args=(2,))
            other.start()
            other.join()

    monkeypatch.setattr(graphs.CapturedSteps, "load", slowly)
    call(1)
    assert [(seed, stats.mode) for seed, _, stats in found] == [(2, "eager"), (1, "graph")]
    assert all(torch.equal(out, expected[seed - 1]) for seed, out, _ in found)


def test_a_load_that_fails_frees_the_captured_step(captures, monkeypatch):
    model, prompt = tiny("bert"), prompts(2, 5)
    generate(model, prompt, **ARGUMENTS)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):

        def interrupted(steps, state):
            raise KeyboardInterrupt

        patched.setattr(graphs.CapturedSteps, "load", interrupted)
        generate(model, prompt, **ARGUMENTS)
    assert generate(model, prompt, return_stats=True, **ARGUMENTS)[1].mode == "graph"


@pytest.mark.parametrize("error", [capture.CaptureError.because(RuntimeError("broken off"), True), KeyboardInterrupt()])
def test_a_pool_into_which_a_capture_was_broken_off(stand_in, monkeypatch, error):
    """torch takes that capture for still going on, and refuses another into the same pool: no graph of it is kept."""
    handles, model = iter(range(9)), tiny("bert")
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))

    def call(columns):
        generate(model, prompts(1, columns), **ARGUMENTS)
        return [steps.pool.handle for steps in graphs.CACHE._steps.values()]

    def broken(*arguments):
        raise error

    assert call(4) == [0] and call(5) == [0, 0]
    with monkeypatch.context() as patched:
        patched.setattr(capture, "record", broken)
        with contextlib.suppress(KeyboardInterrupt):
            call(6)
    captured = len(stand_in.captured)
    assert call(6) == [1] and call(5) == [1, 1] and len(stand_in.captured) == captured + 2


def test_weights_replaced_between_calls_are_used(captures):
    model, prompt = tiny("bert"), prompts(2, 5)
    before = generate(model, prompt, **ARGUMENTS)
    other = tiny("bert", seed=1)
    for parameter, source in zip(model.parameters(), other.parameters(), strict=True):
        parameter.data = source.data
    after = generate(model, prompt, **ARGUMENTS)
    assert torch.equal(after, generate(model, prompt, cuda_graph=False, **ARGUMENTS))
    assert not torch.equal(before, after)


def test_autocast(stand_in):
    """It keeps its casts of weights until its context is left. A graph may not read those, for then they are gone, nor
    may anybody else read a graph's; and weights that change in place are cast anew."""
    model, prompt = tiny("bert"), prompts(2, 5)
    options = dict(ARGUMENTS, temperature=0.5)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(generate(model, prompt, **options), generate(model, prompt, cuda_graph=False, **options))
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(-1)
    assert len(stand_in.captured) == 1


def test_the_cache_is_bounded_and_forgets_dead_models(captures):
    model = tiny("bert")
    for columns in range(1, 6):
        generate(model, prompts(1, columns), **ARGUMENTS)
    assert len(graphs.CACHE) == 3
    del model
    gc.collect()
    other = tiny("bert")
    generate(other, prompts(1, 1), **ARGUMENTS)
    assert len(graphs.CACHE) == 1


def test_a_captured_step_serves_one_call_at_a_time(captures):
    """A call inside another's callback has the same shapes: it must not write into the memory of the outer one."""
    model, prompt = tiny("bert"), prompts(2, 5)
    alone = generate(model, prompt, cuda_graph=False, **ARGUMENTS)
    inner = []

    def nested(_):
        if not inner:
            inner.append(generate(model, prompts(2, 5, seed=9), return_stats=True, **ARGUMENTS))

    assert torch.equal(generate(model, prompt, on_step=nested, **ARGUMENTS), alone)
    assert inner[0][1].mode == "eager" and "another call is using" in inner[0][1].note
    with pytest.raises(KeyError):
        generate(model, prompt, on_step=lambda _: {}["stop"], **ARGUMENTS)
    assert generate(model, prompt, return_stats=True, **ARGUMENTS)[1].mode == "graph"  # free again


def test_inference_mode_has_a_captured_step_of_its_own(captures):
    model, prompt = tiny("bert"), prompts(1, 5)
    with torch.inference_mode():
        inside = generate(model, prompt, **ARGUMENTS)
    assert torch.equal(generate(model, prompt, **ARGUMENTS), inside) and len(captures) == 2


def test_a_capture_that_fails(captures, monkeypatch, caplog):
    def refuse(*arguments):
        raise capture.CaptureError("RuntimeError: operation not permitted when stream is capturing")

    monkeypatch.setattr(capture, "record", refuse)
    model, prompt = tiny("bert"), prompts(1, 4)
    with pytest.raises(RuntimeError, match="cuda_graph=True, but the step cannot be captured: RuntimeError: operation"):
        generate(model, prompt, cuda_graph=True, **ARGUMENTS)
    out, stats = generate(model, prompt, return_stats=True, **ARGUMENTS)
    assert stats.mode == "eager" and "cannot be captured" in stats.note and "operation not permitted" in caplog.text
    assert torch.equal(out, generate(model, prompt, cuda_graph=False, **ARGUMENTS))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [(1, TypeError, "None, True or False, got int"), (True, ValueError, "needs a model on a CUDA device, got cpu")],
)
def test_bad_cuda_graph(value, error, message):
    with pytest.raises(error, match=message):
        capture.wanted(value, torch.device("cpu"))


def test_when_to_capture():
    cuda = torch.device("cuda", 0)
    assert capture.wanted(None, cuda)[0] and capture.wanted(True, cuda)[0]
    assert not capture.wanted(False, cuda)[0] and not capture.wanted(None, torch.device("cpu"))[0]


def test_short_calls_are_captured_once_they_have_come_often(captures, monkeypatch):
    """Three calls of eight steps: the third makes up twenty."""
    monkeypatch.setattr(graphs, "WORTH_CAPTURING", 20)
    model, modes, notes = tiny("bert"), [], []
    for seed in range(4):
        options = ARGUMENTS | dict(seed=seed, temperature=1.0)
        out, stats = generate(model, prompts(2, 5), return_stats=True, **options)
        assert torch.equal(out, generate(model, prompts(2, 5), cuda_graph=False, **options))
        modes.append(stats.mode)
        notes.append(stats.note)
    assert modes == ["eager", "eager", "graph", "graph"] and len(captures) == 1
    assert notes[0] == "a capture does not pay for 8 steps of this shape"
    for columns in range(6, 6 + 8 * graphs.CACHE.size + 4):  # shapes that do not come back
        generate(model, prompts(1, columns), **ARGUMENTS)
    assert len(captures) == 1 and len(graphs.CACHE._uncaptured) == 8 * graphs.CACHE.size
    monkeypatch.setattr(capture, "wanted", lambda cuda_graph, device: (True, ""))
    assert generate(model, prompts(1, 4), cuda_graph=True, return_stats=True, **ARGUMENTS)[1].mode == "graph"


def test_a_recording(monkeypatch):
    device = Device().install(monkeypatch)
    modes = []
    assert capture.record(lambda: modes.append(device.mode), CUDA, "pool") == "replay"
    assert modes == ["error"] and device.mode == 0  # what waits is refused within
    ((pool, stream, mode),) = device.done
    assert (pool, mode) == ("pool", "thread_local") and stream is not device.main
    assert device.stream_in_use is device.main


@pytest.mark.parametrize("broken", [False, True])
def test_a_recording_that_fails(monkeypatch, broken):
    """The reason is the first error, not what the end of the capture says; stream, mode and generator come back."""
    device = Device().install(monkeypatch)

    def wait():
        device.broken = broken
        raise RuntimeError("called a synchronizing CUDA operation\nand more")

    with pytest.raises(capture.CaptureError, match=r"^RuntimeError: called a synchronizing CUDA operation$"):
        capture.record(wait, CUDA, "pool")
    assert device.mode == 0 and device.stream_in_use is device.main
    assert (device.done[-1] == ("renewed", "state")) == broken  # one that ends in order leaves graphs of before alone
    device.broken = True  # torch may find out only at the end
    with pytest.raises(capture.CaptureError, match="previous error during capture") as found:
        capture.record(lambda: None, CUDA, "pool")
    assert device.stream_in_use is device.main and found.value.broken


def test_an_aborted_graph_is_kept(monkeypatch, caplog):
    """torch's allocator goes on calling what it has registered; one whose capture ended in order may be freed."""
    monkeypatch.setattr(capture, "_aborted", [])
    device, made = Device().install(monkeypatch), []

    def graph():
        made.append(weakref.ref(whole := Graph()))
        return whole

    def wait():
        raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    for device.broken in (False, True):
        with pytest.raises(capture.CaptureError):
            capture.record(wait, CUDA, "pool")
        assert ("restarted" in caplog.text) == device.broken
    gc.collect()
    assert [reference() is not None for reference in made] == [False, True]


def test_captures_share_a_stream_where_their_replays_do(monkeypatch):
    """Replays on two streams may run at the same time, and a captured product writes to a workspace of the stream of
    its capture."""
    device, found, other = Device().install(monkeypatch), [], Stream()
    for caller in (device.main, other, device.main):
        device.stream_in_use = caller
        for _ in range(2):
            seen = []
            capture.warm_up(lambda seen=seen: seen.append(device.stream_in_use), CUDA)
            capture.record(lambda: None, CUDA, "pool")
            assert seen == [device.done[-1][1]]  # warmed up on the stream of the capture
        found += seen
    assert found[0] is found[2] and found[0] is not found[1]


@pytest.mark.parametrize("broken", [False, True])
def test_a_recording_that_is_interrupted(monkeypatch, broken):
    device = Device().install(monkeypatch)

    def stop():
        device.broken = broken
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture.record(stop, CUDA, "pool")
    assert device.mode == 0 and device.stream_in_use is device.main
    assert (device.done[-1] == ("renewed", "state")) == broken


def test_threads_take_turns_at_recording(monkeypatch):
    """Else the mode of the first would be found, and brought back, by the second."""
    device, order = Device().install(monkeypatch), []

    def inner():
        capture.record(lambda: order.append("inner"), CUDA, "pool")

    other = threading.Thread(target=inner)

    def outer():
        other.start()
        other.join(0.2)
        order.append("outer")

    capture.record(outer, CUDA, "pool")
    other.join()
    assert order == ["outer", "inner"] and device.mode == 0 and device.stream_in_use is device.main


def test_no_warm_up_without_a_gpu():
    with pytest.raises(capture.CaptureError, match="no CUDA graphs on cpu"):
        capture.warm_up(lambda: None, torch.device("cpu"))
    assert str(capture.CaptureError.because(KeyError())) == "KeyError: "
