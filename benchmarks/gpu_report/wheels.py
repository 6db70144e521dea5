"""Packages for machines without a network: what is missing is installed from a folder of wheels, beside what is there.

A virtual environment of its own sees the packages of this interpreter behind its own; nothing else is changed.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# module, distribution: what the report cannot do without, and what it only compares with or draws by
NEEDED = {"pytest": "pytest", "rich": "rich", "transformers": "transformers", "numpy": "numpy"}
WELCOME = {
    "matplotlib": "matplotlib",
    "accelerate": "accelerate",
    "datasets": "datasets",
    "liger_kernel": "liger-kernel",
    "cut_cross_entropy": "cut-cross-entropy",
    "quack": "quack-kernels",
    "flashinfer": "flashinfer-python",
}


def missing() -> list[str]:
    """Distributions whose modules cannot be found here."""
    return [name for module, name in (NEEDED | WELCOME).items() if importlib.util.find_spec(module) is None]


def environment(wheels: Path, folder: Path, tell: Callable[[str], None]) -> Path:
    """A virtual environment in `folder` with everything missing that `wheels` holds; returns its interpreter.

    Each package is installed by itself: one whose wheel does not fit keeps no other out.

    Raises:
        ValueError: `wheels` is no folder.
        RuntimeError: something that is needed could not be installed; with the end of what pip said.
    """
    if not wheels.is_dir():
        raise ValueError(f"--wheels must be a folder, got {wheels}")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--clear", str(folder)], check=True)
    python = folder / "bin" / "python"
    where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    (own / "behind.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")) + "\n")
    pip = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-index"]
    for name in missing():
        done = subprocess.run([*pip, "--find-links", str(wheels), name], capture_output=True, text=True)
        tell(f"{name}: {'installed' if not done.returncode else 'not installed'} from {wheels}")
        if done.returncode and name in NEEDED.values():
            raise RuntimeError(f"{name} is needed: {done.stderr.strip()[-300:]}")
    return python
