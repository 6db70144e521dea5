"""`python -m dllm.core.eval`: the command line of dLLM 0.1, which is that of `lm_eval run`, and that of `dllm eval`."""

import sys

from dllm.exits import exit_code

if __name__ == "__main__":
    from dllm.core.eval.command import main

    sys.exit(exit_code("dllm eval", lambda: main(sys.argv[1:])))
