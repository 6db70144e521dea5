"""The package as a whole: what importing it loads, what runs where pieces are missing, what a wheel holds, the docs."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks.bodies import PROGRAMS
from benchmarks.peers import PEERS
from dllm_kernels._impl import why_not_cpu

ROOT = Path(__file__).parents[1]
CODE = ("csrc", "dllm", "dllm_kernels")
ABOUT = ("README.md", "LICENSE")


def imported(name: str):
    """A module; the operators that those of CPU kernels describe must exist first."""
    if name.endswith(".cpu") and (lacking := why_not_cpu()):
        pytest.skip(lacking)
    return importlib.import_module(name)


def run(code: str, **environment: str) -> str:
    """What a fresh interpreter prints for `code`; its errors are this test's."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def modules(*packages: str) -> list[str]:
    """Every module of `packages`, except those that need Triton or FastAPI where it is not installed, or a peer's
    library."""
    no_triton, no_fastapi = (importlib.util.find_spec(name) is None for name in ("triton", "fastapi"))
    adapters = {peer for offered in PEERS.values() for peer in offered}
    adapters |= {"llama_cpp", *(program.library for program in PROGRAMS.values())}
    names = []
    for package in packages:
        for file in sorted((ROOT / package).rglob("*.py")):
            if file.name == "__main__.py" or (no_triton and "import triton" in file.read_text()):
                continue
            if file.parent.name == "peers" and file.stem in adapters:
                continue
            if no_fastapi and file.parent == ROOT / "dllm/serve":
                continue
            names.append(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    return names


LIGHT = [
    "dllm",
    "dllm.pipelines.a2d.convert",
    "dllm.fast",
    "dllm.fast.training.loss",
    "dllm.core.noising",
    "dllm.utils",
    "dllm.cli",
    "dllm_kernels",
]


def test_importing_loads_no_heavy_package():
    """All of them together, which is more than each of them."""
    heavy = "{'accelerate', 'datasets', 'matplotlib', 'rich', 'torchmetrics', 'transformers', 'triton'}"
    modules = ", ".join(LIGHT)
    code = f"import sys, torch; had = set(sys.modules); import {modules}; print(({heavy} & set(sys.modules)) - had)"
    assert run(code) == "set()"


def test_importing_dllm_does_not_even_load_torch():
    assert run("import sys, dllm; print('torch' in sys.modules)") == "False"


def test_a_package_named_tests_does_not_hide_these(tmp_path):
    """Some wheels install one by accident; it would win over a folder that is no package."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").touch()
    assert run("import tests.models; print(tests.models.MASK_ID)", PYTHONPATH=str(tmp_path)) == "3"


def test_everything_runs_without_triton_and_without_a_compiler(tmp_path):
    """As on macOS and Windows: `None` in sys.modules makes Python treat a package as not installed."""
    code = """
import sys
sys.modules["triton"] = None
import torch
import dllm.fast
from dllm import doctor
from dllm_kernels import gumbel_argmax
assert gumbel_argmax(torch.eye(3)).token.tolist() == [0, 1, 2]
sys.exit(doctor.main())
"""
    report = run(code, CXX="no-such-compiler", DLLM_CACHE=str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert "CXX is set to" in report and "triton is not installed" in report and "failed" not in report


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what packages are built from, since building leaves its traces in the folder."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in CODE:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", *ABOUT):
        shutil.copy(ROOT / name, copy)
    return copy


def build(checkout: Path, *command: str) -> None:
    """Run Python in the copy, without the network."""
    done = subprocess.run([sys.executable, *command], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(checkout) -> zipfile.ZipFile:
    build(checkout, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", ".")
    return zipfile.ZipFile(next(checkout.glob("dllm-*.whl")))


def test_the_source_distribution_holds_the_code_and_what_is_said_about_it(checkout):
    """All that a wheel is built from, and the pages beside it."""
    build(checkout, "-c", "from setuptools.build_meta import build_sdist; build_sdist('dist')")
    with tarfile.open(next(checkout.glob("dist/dllm-*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    code = {file for name in CODE for file in (ROOT / name).rglob("*") if file.is_file() and file.suffix != ".pyc"}
    expected = {file.relative_to(ROOT).as_posix() for file in code} | {"pyproject.toml", "setup.py", *ABOUT}
    assert expected - held == set()


def test_wheel_holds_the_code_and_nothing_else(wheel):
    """The C++ sources travel inside dllm_kernels, because the extension is built where the wheel is installed."""
    expected = {
        file.relative_to(ROOT).as_posix().replace("csrc/", "dllm_kernels/csrc/")
        for name in CODE
        for file in (ROOT / name).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {"dllm/py.typed", "dllm_kernels/py.typed", "dllm_kernels/csrc/library.cpp"} <= held
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_installing_needs_no_compiler_and_no_second_torch(wheel):
    """Pure Python, as far as the installer can see; torch is asked of the environment, not of the build."""
    build = re.search(r"^requires = (.*)$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert "torch" not in build
    facts = {Path(name).name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
    assert "Root-Is-Purelib: true" in facts["WHEEL"]
    assert re.search(r"^Requires-Dist: torch>=\S+$", facts["METADATA"], re.MULTILINE)


@pytest.mark.parametrize("name", modules("benchmarks", "dllm", "dllm_kernels"))
def test_examples_in_docstrings_run(name):
    failed, _ = doctest.testmod(imported(name))
    assert failed == 0


@pytest.mark.parametrize("name", modules("dllm", "dllm_kernels"))
def test_public_names_have_docstrings(name):
    module = imported(name)
    undocumented = [
        key
        for key, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and not (key.startswith("_") or value.__module__ != name or value.__doc__)
    ]
    assert undocumented == []
