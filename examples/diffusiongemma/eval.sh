#!/usr/bin/env bash
# Evaluate DiffusionGemma on tasks that generate texts; under this model texts have no likelihood:
#
#     bash examples/diffusiongemma/eval.sh google/diffusiongemma-26B-A4B-it
#     bash examples/diffusiongemma/eval.sh google/diffusiongemma-26B-A4B-it --tasks ifeval,mmlu_pro --limit 20
#
# Words behind the model are options of `dllm eval` (dllm eval --help): --tasks for other tasks, --limit 20 for a try,
# --dry-run for an estimate of the time, --max-denoising-steps 16 for fewer steps. Settings that are not given are those
# of the model's generation_config. A run that was killed continues when it is started again.
set -euo pipefail

if (($# == 0)); then
    echo "usage: bash examples/diffusiongemma/eval.sh MODEL [options of dllm eval]" >&2
    exit 2
fi
tasks=(--tasks gsm8k_cot)
for word in "${@:2}"; do
    if [[ "$word" == --tasks || "$word" == --tasks=* ]]; then tasks=(); fi
done
export HF_ALLOW_CODE_EVAL=1 # lm-eval's own tasks of code ask for it
exec python -m dllm.core.eval "$1" --model diffusiongemma "${tasks[@]}" --apply-chat-template --confirm-run-unsafe-code \
    --output-path runs/eval/diffusiongemma "${@:2}"
