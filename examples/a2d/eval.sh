#!/usr/bin/env bash
# Evaluate an autoregressive model that was made a diffusion model:
#
#     bash examples/a2d/eval.sh models/a2d-mdlm-sft/checkpoint-final --apply-chat-template
#     bash examples/a2d/eval.sh models/a2d-bd3lm-sft/checkpoint-final --tasks gsm8k_cot --apply-chat-template
#
# No settings of published runs are known for these models: shots are those of the tasks, lengths those that dLLM 0.1's
# harness had by default (128 tokens in 128 steps). Whether the model attends by blocks is seen in its configuration.
# The tasks here generate; --tasks names others.
# Words behind the model are options of `dllm eval` (dllm eval --help): --max-new-tokens 256 --steps 256, --limit 20 for a
# try. A run that was killed continues when it is started again.
set -euo pipefail

if (($# == 0)); then
    echo "usage: bash examples/a2d/eval.sh MODEL [options of dllm eval]" >&2
    exit 2
fi
export HF_ALLOW_CODE_EVAL=1 # lm-eval's own tasks of code ask for it
exec python -m dllm.core.eval "$1" --tasks gsm8k_cot,bbh,mmlu_generative,minerva_math,humaneval,mbpp \
    --confirm-run-unsafe-code --output-path runs/eval/a2d "${@:2}"
