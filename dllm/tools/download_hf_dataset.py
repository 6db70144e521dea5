"""Download a data set from the Hugging Face Hub into a folder.

    BASE_DATASETS_DIR=/data/datasets python -m dllm.tools.download_hf_dataset --dataset_id tatsu-lab/alpaca

With BASE_DATASETS_DIR set, load_sft_dataset and load_pt_dataset find it there by the same name, without a network too.
Exit codes: 0 done, 1 it failed, 2 wrong options, 130 interrupted.
"""

import functools
import sys

from dllm.tools.download import download

main = functools.partial(download, "dataset", __doc__)

if __name__ == "__main__":
    sys.exit(main())
