"""Download a data set from the Hugging Face Hub into a folder.

    BASE_DATASETS_DIR=/data/datasets python -m dllm.tools.download_hf_dataset --dataset_id tatsu-lab/alpaca

With BASE_DATASETS_DIR set, load_sft_dataset and load_pt_dataset find it there by the same name, on machines without
network too. Exit codes: 0 done, 1 it could not be done, 2 options that make no sense, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dllm.tools.download import download

SKIPPED = ()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        SystemExit: 0
    """
    return download("dataset", __doc__.partition("\n")[0], "BASE_DATASETS_DIR", SKIPPED, arguments)


if __name__ == "__main__":
    sys.exit(main())
