"""What depends on the version of transformers, under the oldest that dllm runs on and under that of GPU machines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = Path(sys.prefix) / "transformers"  # one folder a version; `make setup` makes them from scripts/transformers
VERSIONS = sorted(file.stem for file in (ROOT / "scripts" / "transformers").glob("*.txt"))
# attention and caches, experts, training scripts, checkpoints of other formats
FILES = (
    "fast/test_capture_masks.py",
    "fast/test_cache_masks.py",
    "fast/test_cache.py",
    "fast/test_packed_rows.py",
    "fast/test_last_layer.py",
    "fast/test_recorded_body.py",
    "fast/test_generate_patch.py",
    "fast/test_visibility.py",
    "fast/test_patch_scripts.py",
    "families/test_int8_mixtures.py",
    "families/test_training.py",
    "test_bidirectional.py",
    "test_get_model.py",
)
CODE = """
import sys, pytest, transformers
assert transformers.__file__.startswith(sys.argv[1]), transformers.__file__
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_under_another_version(version):
    folder = FOLDER / version
    if not folder.is_dir():
        pytest.skip("only `make setup` installs other versions of transformers")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", CODE, str(folder), *(f"tests/{file}" for file in FILES)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
