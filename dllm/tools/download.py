"""The body of the programs that download from the Hugging Face Hub: `download_hf_model` and `download_hf_dataset`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from dllm.exits import exit_code

# By kind of repository: the environment variable that names the folder of all downloads, where this package's loaders
# look, and the files that are left out: weights in other formats than safetensors.
_FOLDERS = {"dataset": "BASE_DATASETS_DIR", "model": "BASE_MODELS_DIR"}
_SKIPPED = {
    "dataset": [],
    "model": ["*.bin", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.pt", "*.pth"],
}


def download(kind: str, doc: str, arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, download a repository of the Hub into a folder, and return the exit code.

    Args:
        kind: kind of repository, model or dataset.
        doc: docstring of the program; its first line is the description in --help.
        arguments: words of the command line; None for those of the process.

    Example:
        >>> download("model", "Download a model.", ["--help"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        SystemExit: 0
    """
    program, base = f"download_hf_{kind}", _FOLDERS[kind]
    parser = argparse.ArgumentParser(prog=f"python -m dllm.tools.{program}", description=doc.partition("\n")[0])
    parser.add_argument(f"--{kind}_id", required=True, dest="name", help="name on the Hub, owner/name")
    parser.add_argument(
        "--local_dir", type=Path, default=None, help=f"output folder (default: owner/name under {base})"
    )
    parser.add_argument("--revision", default=None, help="a branch, tag or commit (default: the newest)")
    options = parser.parse_args(arguments)

    def work() -> None:
        import huggingface_hub

        folder = huggingface_hub.snapshot_download(
            options.name,
            repo_type=kind,
            revision=options.revision,
            local_dir=options.local_dir or _default_folder(options.name, base),
            ignore_patterns=_SKIPPED[kind],
        )
        print(f"{options.name}: {folder}")

    return exit_code(program, work)


def _default_folder(name: str, base: str) -> Path:
    """The folder in which this package's loaders look for a repository of that name.

    Raises:
        ValueError: the environment variable is not set.
    """
    folder = os.environ.get(base, "").strip()
    if not folder:
        raise ValueError(f"set {base} to the folder of all downloads, or name one by --local_dir")
    return Path(folder) / name
