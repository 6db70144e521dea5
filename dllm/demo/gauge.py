"""The old path of :mod:`dllm.demo.training.gauge`: `python -m dllm.demo.gauge` still runs it."""

import sys

from dllm.demo.training.gauge import GEN_LENGTH, TASKS, Question, Score, main, measure, parse

__all__ = ["GEN_LENGTH", "TASKS", "Question", "Score", "main", "measure", "parse"]

if __name__ == "__main__":
    sys.exit(main())
