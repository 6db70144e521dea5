#!/usr/bin/env bash
# Evaluate a BERT that chats on every task of its published settings, with the weights loaded once:
#
#     bash examples/bert/eval.sh models/bert-chat/checkpoint-final --instruct
#     bash examples/bert/eval.sh models/bert-chat/checkpoint-final --instruct --tasks mmlu --limit 20
#
# Words behind the model are options of `dllm eval` (dllm eval --help): --tasks mmlu,piqa for some of the tasks, --limit 20
# for a try, --dry-run for an estimate of the time. A run that was killed continues when it is started again.
# On several GPUs, or on a cluster, task by task: scripts/eval.slurm.sh.
set -euo pipefail

if (($# == 0)); then
    echo "usage: bash examples/bert/eval.sh MODEL [options of dllm eval]" >&2
    exit 2
fi
export HF_ALLOW_CODE_EVAL=1 # lm-eval's own tasks of code ask for it
exec python -m dllm.core.eval "$1" --model bert --published --confirm-run-unsafe-code --output-path runs/eval/bert "${@:2}"
