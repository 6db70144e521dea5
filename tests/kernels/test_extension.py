"""The C++ extension: built once, for every vector width, and missed politely."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dllm_kernels import _extension
from tests import programs
from tests.compiler import quick

pytestmark = pytest.mark.skipif(_extension.find_compiler() is None, reason="no C++ compiler")

AGREE = """
import torch
from dllm_kernels import gumbel_argmax, linear_gumbel_argmax
from dllm_kernels.testing import assert_head_within_budget, assert_within_budget, make_head, make_logits, make_noise
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for vocab_size in (5, 1025, 20000):
        logits, noise = make_logits(8, vocab_size, dtype=dtype), make_noise(8, torch.full((8,), 0.8))
        got = gumbel_argmax(logits, **noise, impl="cpu")
        assert torch.equal(got.token, gumbel_argmax(logits, **noise, impl="reference").token)
        assert_within_budget(got, logits, **noise)
    for rows in (3, 20, 75):
        head, noise = make_head(rows, 25, 2050, dtype=dtype), make_noise(rows, torch.full((rows,), 0.8))
        got = linear_gumbel_argmax(*head, **noise, impl="cpu")
        assert_head_within_budget(got, *head, **noise)
print("agree")
"""


def run(code, cache, **environment):
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "program.py"
        script.write_text(code)
        return programs.run(script, environment={"DLLM_CACHE": str(cache), **environment}, timeout=300)


# -m flags win over -march=native: the same source as 8 lanes (AVX2), as 4 lanes where FMA is for 8, as 4 lanes without
# intrinsics
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param("-mno-avx512f", marks=pytest.mark.exhaustive),  # tests/test_machines.py runs more with it
        pytest.param("-mno-avx512f -mno-avx2", marks=pytest.mark.exhaustive),
        pytest.param("-mno-avx512f -mno-avx2 -mno-fma -mno-avx", marks=pytest.mark.exhaustive),
    ],
)
def test_narrower_vectors(tmp_path, flags):
    if os.uname().machine not in ("x86_64", "AMD64"):
        pytest.skip("flags of x86-64")
    done = run(AGREE, tmp_path, CXX=f"{_extension.find_compiler()} {flags}")
    assert done.stdout.strip() == "agree", done.stderr


TILES = """
import ctypes
import torch
import torch.nn.functional as F
from pathlib import Path
from dllm_kernels import _extension, linear_gumbel_argmax
_extension.source_folder = lambda: Path({source!r})
from dllm_kernels._linear import linear
from dllm_kernels.testing import assert_head_within_budget, make_head
torch.set_num_threads(2)
# widths and tokens around a tile's and a pair of tiles', several stripes; rows in one to four vectors and two blocks
for width, vocab_size in ((1, 40), (31, 33), (32, 800), (100, 500), (160, 31)):
    hidden, weight, bias = make_head(70, width, vocab_size, dtype=torch.bfloat16)
    full = linear(hidden, weight, bias)
    truth = F.linear(hidden.double(), weight.double(), bias.double())
    assert ((full - truth).abs() <= truth.abs() * 2.0**-8 + width * 2.0**-20).all()
    for rows in (1, 2, 15, 16, 17, 33, 48, 50, 64, 65):
        assert torch.equal(linear(hidden[:rows], weight, bias), full[:rows])
        assert torch.equal(linear(hidden[70 - rows:], weight, bias), full[70 - rows:])
    apart = torch.zeros(vocab_size, width + 3, dtype=torch.bfloat16)[:, :width].copy_(weight)
    assert torch.equal(linear(hidden, apart, bias), full)
    assert_head_within_budget(linear_gumbel_argmax(hidden, weight, bias, impl="cpu"), hidden, weight, bias)
print("agree", ctypes.CDLL(None).tiles_multiplied())
"""
PRODUCTS = ("library.cpp", "linear.cpp", "linear_gumbel_argmax.cpp")  # of csrc/, what the program above needs


@pytest.mark.skipif(not (sys.platform == "linux" and os.uname().machine == "x86_64"), reason="needs Linux on x86-64")
def test_matrix_tiles(tmp_path):
    """Where a CPU has none, a stand-in runs their instructions, as Intel's manual describes them."""
    cpu = Path("/proc/cpuinfo").read_text()
    if "avx512_bf16" not in cpu:
        pytest.skip("needs AVX-512 BF16")
    compiler, stand_in, products = _extension.find_compiler(), tmp_path / "tiles.so", tmp_path / "products"
    products.mkdir()
    for file in (*_extension.source_folder().glob("*.h"), *map(_extension.source_folder().joinpath, PRODUCTS)):
        shutil.copy(file, products)
    source = Path(__file__).parents[1] / "tiles_stand_in.cpp"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", str(source), "-o", str(stand_in), "-ldl"]
    subprocess.run([*shlex.split(compiler), *flags], check=True)
    tiles = TILES.format(source=str(products))
    given = dict(CXX=quick(tmp_path, "-mamx-tile -mamx-bf16"), LD_PRELOAD=str(stand_in), DLLM_CACHE=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", tiles], capture_output=True, text=True, env=os.environ | given, timeout=300
    )
    word, _, multiplied = done.stdout.strip().partition(" ")
    assert word == "agree" and (int(multiplied) > 0 or "amx_bf16" in cpu), done.stderr


def test_built_once(tmp_path):
    """A source of one line stands for csrc/, which takes a hundred times as long."""
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.mkdir()
    (source / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    ask = f"""
from pathlib import Path
from dllm_kernels import _extension as e
e.source_folder = lambda: Path({str(source)!r})
print(e.status().library.stat().st_mtime_ns, e.status().reason)
"""
    first, second = run(ask, cache), run(ask, cache)
    assert first.stdout == second.stdout and first.stdout.endswith("None\n"), first.stderr
    built = sorted(path for path in cache.rglob("*") if path.is_file())
    assert [path.name for path in built] == ["dllm_kernels.sha256", "dllm_kernels.so"]
    built[1].write_bytes(built[1].read_bytes()[:2000])  # a full disk: loading this would end the process
    third = run(ask, cache)
    assert third.returncode == 0 and third.stdout.endswith("None\n") and third.stdout != first.stdout, third.stderr


def test_processes_that_need_it_at_once_build_it_once(tmp_path):
    """As the ranks of a run do. The compiler counts its calls, and takes a while."""
    source, cache, calls = tmp_path / "source", tmp_path / "cache", tmp_path / "calls"
    source.mkdir()
    (source / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    compiler = tmp_path / "compiler"
    real = shlex.quote(shutil.which(shlex.split(_extension.find_compiler())[0]))
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *--version*) ;; *) echo called >>{calls}; sleep 1 ;; esac\nexec {real} "$@"\n'
    )
    compiler.chmod(0o755)
    build = f"""
from pathlib import Path
from dllm_kernels import _extension as e
e.source_folder = lambda: Path({str(source)!r})
print(e.load())
"""
    given = {"DLLM_CACHE": str(cache), "CXX": str(compiler)}
    script, said = tmp_path / "program.py", [tmp_path / f"said {number}" for number in range(3)]
    script.write_text(build)
    started = [
        programs.start([str(script)], environment=given, streams=[Path(os.devnull), file, file]) for file in said
    ]
    for process in started:
        process.join(120)
    assert [file.read_text() for file in said] == ["None\n"] * 3
    assert calls.read_text().count("called") == 1


def test_without_a_compiler_the_reference_serves_and_says_so_once(tmp_path):
    code = """
import torch
from dllm_kernels import gumbel_argmax
for _ in range(2):
    print(gumbel_argmax(torch.tensor([[0.0, 1.0]])).token.item())
try:
    gumbel_argmax(torch.zeros(1, 2), impl="cpu")
except RuntimeError as error:
    print(error)
"""
    done = run(code, tmp_path, CXX="no-such-compiler")
    assert done.stdout == (
        "1\n1\nimpl='cpu' cannot run: CXX is set to 'no-such-compiler', which was not found "
        "(install g++ or clang++, or set CXX)\n"
    )
    assert done.stderr.count("served by the reference implementation") == 1


@pytest.mark.parametrize("compiler", [" ", "g++ '", "/dev/null"])
def test_a_strange_cxx_is_no_crash(monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    assert (_extension.find_compiler() is None) == bool(compiler.strip())


def test_a_broken_compiler_is_reported_and_leaves_nothing(tmp_path):
    done = run("from dllm_kernels import _extension as e; print(e.load())", tmp_path, CXX="false")
    assert "failed to build the C++ extension" in done.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
