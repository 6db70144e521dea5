"""What the two programs that download from the Hugging Face Hub have in common."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from dllm.exits import exit_code


def download(kind: str, purpose: str, base: str, skipped: Sequence[str], arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, download a repository of the Hub into a folder, and return the exit code.

    Args:
        kind: of the repository, model or dataset.
        purpose: the first line of the help text.
        base: environment variable that names the folder of all such downloads, where the loaders of this package look.
        skipped: patterns of files that are left out.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(prog=f"python -m dllm.tools.download_hf_{kind}", description=purpose)
    parser.add_argument(f"--{kind}_id", required=True, help="its name on the Hub, owner/name")
    parser.add_argument("--local_dir", type=Path, default=None, help=f"the folder (default: owner/name under {base})")
    parser.add_argument("--revision", default=None, help="a branch, tag or commit (default: the newest)")
    options = parser.parse_args(arguments)
    name = getattr(options, f"{kind}_id")

    def work() -> None:
        import huggingface_hub

        found = huggingface_hub.snapshot_download(
            name,
            repo_type=kind,
            revision=options.revision,
            local_dir=options.local_dir or _folder_of(name, base),
            ignore_patterns=list(skipped),
        )
        print(f"{name}: {found}")

    return exit_code(f"download_hf_{kind}", work)


def _folder_of(name: str, base: str) -> Path:
    """Where the loaders look for a repository of that name.

    Raises:
        ValueError: the environment does not say.
    """
    folder = os.environ.get(base, "").strip()
    if not folder:
        raise ValueError(f"set {base} to the folder of all downloads, or name one by --local_dir")
    return Path(folder) / name
