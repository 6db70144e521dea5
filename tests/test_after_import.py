"""Importing dllm registers the official model types with transformers' auto classes, in whatever order they come."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dllm.after_import import after_import
from tests import programs

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "tests" / "families" / "checkpoints" / "dream"
IMPORT = "from transformers import AutoModelForCausalLM"
LOADS = f"print(type(AutoModelForCausalLM.from_pretrained({str(CHECKPOINT)!r})).__name__)"
SPAWNED = f"""
import multiprocessing
import dllm

def child(queue):
    from transformers import AutoModel
    queue.put(type(AutoModel.from_pretrained({str(CHECKPOINT)!r})).__name__)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    print(queue.get(timeout=200))
    process.join()
"""
PROGRAMS = {
    "dllm first": f"import dllm.fast\n{IMPORT}\n{LOADS}",
    "AutoConfig before": f"from transformers import AutoConfig\nimport dllm\n{IMPORT}\n{LOADS}",
    "spawned": SPAWNED,
}


def run(code: str, folder: Path) -> str:
    script = folder / "program.py"
    script.write_text(code)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("order", PROGRAMS)
def test_auto_classes_load_official_checkpoints(order, tmp_path):
    assert run(PROGRAMS[order], tmp_path) == "Qwen2ForCausalLM"


def test_a_program_that_has_imported_transformers_before(tmp_path):
    """The process is forked from one that has."""
    (tmp_path / "program.py").write_text(f"{IMPORT}\nimport dllm\n{LOADS}")
    done = programs.run(tmp_path / "program.py", cwd=tmp_path)
    assert done.stdout.strip() == "Qwen2ForCausalLM", done.stderr


def test_auto_config_alone_loads_no_models_and_nothing_stays_behind(tmp_path):
    code = f"""
import inspect, sys
import dllm
from dllm.after_import import _Finder
from transformers import AutoConfig
print(AutoConfig.from_pretrained({str(CHECKPOINT)!r}).model_type, "dllm.models" in sys.modules)
from transformers.models.auto import modeling_auto
print(any(isinstance(finder, _Finder) for finder in sys.meta_path))
print(type(modeling_auto.__loader__).__name__, modeling_auto.__spec__.loader is modeling_auto.__loader__)
print(len(inspect.getsource(modeling_auto)) > 1000)
"""
    assert run(code, tmp_path).split("\n") == ["Dream False", "False", "SourceFileLoader True", "True"]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module that can be imported and has not been."""
    (tmp_path / "watched_module.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield "watched_module"
    sys.modules.pop("watched_module", None)


def test_an_action_runs_once_after_its_module(module):
    seen = []
    after_import(module, lambda found: seen.append(found.value))
    after_import(module, lambda found: seen.append(-found.value))
    assert importlib.util.find_spec(module) and not seen  # looking for it is not importing it
    imported = __import__(module)
    assert sorted(seen) == [-3, 3]
    importlib.reload(imported)
    assert len(seen) == 2
    after_import(module, lambda found: seen.append(found))
    assert seen[-1] is imported


def test_a_module_that_is_not_there_is_not_there(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    after_import("no_such_module_at_all", lambda _: pytest.fail("it is not there"))
    with pytest.raises(ModuleNotFoundError):
        __import__("no_such_module_at_all")


def test_a_module_that_fails_is_no_import(module, tmp_path):
    (tmp_path / "watched_module.py").write_text("raise RuntimeError('broken')\n")
    seen = []
    after_import(module, seen.append)
    with pytest.raises(RuntimeError, match="broken"):
        __import__(module)
    assert not seen
    (tmp_path / "watched_module.py").write_text("value = 4  # mended\n")
    __import__(module)
    assert [found.value for found in seen] == [4]


def test_an_action_that_fails_breaks_no_import(module, caplog):
    def fail(_):
        raise RuntimeError("the action")

    after_import(module, fail)
    assert __import__(module).value == 3
    assert "after the import of watched_module has failed" in caplog.text and "the action" in caplog.text
