"""Download a model from the Hugging Face Hub into a folder.

    BASE_MODELS_DIR=/data/models python -m dllm.tools.download_hf_model --model_id answerdotai/ModernBERT-large

With BASE_MODELS_DIR set, get_model and get_tokenizer find it there by the same name, on machines without network too.
Weights are taken as safetensors only, the one format that is read here. Exit codes: 0 done, 1 it could not be done, 2
options that make no sense, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dllm.tools.download import download

SKIPPED = ("*.bin", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.pt", "*.pth")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        SystemExit: 0
    """
    return download("model", __doc__.partition("\n")[0], "BASE_MODELS_DIR", SKIPPED, arguments)


if __name__ == "__main__":
    sys.exit(main())
