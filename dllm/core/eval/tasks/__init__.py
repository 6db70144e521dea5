"""Tasks for lm-eval that the published runs used and lm-eval's package does not hold, as its YAML files.

The head of each file says what of it was seen in a publication, and what is ours because it was not.
"""

from __future__ import annotations

from pathlib import Path


def tasks_folder() -> Path:
    """The folder of these tasks, for lm-eval's `include_path`.

    Example:
        >>> sorted(path.stem for path in tasks_folder().glob("*.yaml"))[:2]
        ['gpqa_n_shot_gen', 'gsm8k_bert']
    """
    return Path(__file__).parent
