"""A virtual environment for machines without a network: missing packages come from a folder of wheels.

It also sees the packages of this interpreter. Nothing is installed outside it.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# module: distribution. The report needs the first; the second are for comparisons and plots
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
    """Distributions whose modules are not installed."""
    return [name for module, name in (NEEDED | WELCOME).items() if importlib.util.find_spec(module) is None]


def environment(wheels: Path, folder: Path, tell: Callable[[str], None]) -> Path:
    """Make a virtual environment in `folder` with the missing packages that `wheels` has; returns its interpreter.

    Each package is installed separately, so that one without a suitable wheel does not stop the others.

    Raises:
        ValueError: `wheels` is not a folder.
        RuntimeError: a needed package could not be installed; the message has the end of pip's output.
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
