"""Download a model from the Hugging Face Hub into a folder.

    BASE_MODELS_DIR=/data/models python -m dllm.tools.download_hf_model --model_id answerdotai/ModernBERT-large

With BASE_MODELS_DIR set, get_model and get_tokenizer find it there by the same name, without a network too. Weights are
downloaded as safetensors only, the one format that is read here. Exit codes: 0 done, 1 it failed, 2 wrong options, 130
interrupted.
"""

import functools
import sys

from dllm.tools.download import download

main = functools.partial(download, "model", __doc__)

if __name__ == "__main__":
    sys.exit(main())
