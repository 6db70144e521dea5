"""Without lm-eval there is nothing here to run but the settings and the sandbox."""

from __future__ import annotations

import importlib.util

if any(importlib.util.find_spec(package) is None for package in ("lm_eval", "datasets")):
    collect_ignore = [
        "test_eval_suite.py",
        "test_evaluation_page.py",
        "test_fork_tasks.py",
        "test_published_lines.py",
        "test_to_the_end.py",
    ]
