"""What depends on the version of transformers, under another one than the environment's: that of GPU machines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = Path(sys.prefix) / "older-transformers"  # `make setup` makes it from scripts/older-transformers.txt
FILES = ("tests/fast/test_capture_masks.py", "tests/fast/test_cache_masks.py")
CODE = """
import sys, pytest, transformers
assert transformers.__file__.startswith(sys.argv[1]), transformers.__file__
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


@pytest.mark.skipif(not FOLDER.is_dir(), reason="only `make setup` installs an older transformers")
def test_captures_and_caches():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(FOLDER)}
    command = [sys.executable, "-c", CODE, str(FOLDER), *FILES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
