#!/usr/bin/env bash
# Evaluate a model as the published evaluations did, on a Slurm cluster or on one machine:
#
#     sbatch --nodes 2 --gres gpu:8 scripts/eval.slurm.sh dream gsm8k_cot Dream-org/Dream-v0-Instruct-7B True 8
#     bash scripts/eval.slurm.sh bert mmlu models/bert-chat
#
# Arguments: CLASS TASK MODEL [INSTRUCT False] [BATCH 1] [LOG False] [LIMIT None]
#
# CLASS     llada, dream or bert
# TASK      a task of that class; a name that is none prints all of them
# MODEL     a folder, absolute or under $BASE_MODELS_DIR, or a name on the Hub if that is not set
# INSTRUCT  True: the settings of instruct models, prompts in the chat template
# BATCH     requests of a batch; an answer does not depend on it
# LOG       True: write every sample beside the results
# LIMIT     only so many documents of each task
#
# The settings of a task are those of dllm/core/eval/settings/. Results: .logs/CLASS_TASK_JOB_samples_TIME.json.
# Every GPU of the job runs one process; PROCESSES_PER_NODE sets another number. Options of sbatch stand before this
# file's name and go over the lines below. Run where the environment with dllm is active: sbatch hands it on.
# HF_ALLOW_CODE_EVAL=1 is set: the tasks of code run what the model writes.
#SBATCH --job-name=dllm-eval
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.out
set -euo pipefail

fail() {
    echo "eval.slurm.sh: $1" >&2
    exit 2
}

if (($# < 3 || $# > 7)); then
    fail "must have CLASS TASK MODEL [INSTRUCT] [BATCH] [LOG] [LIMIT], got $# arguments"
fi
cd "${SLURM_SUBMIT_DIR:-.}" # Slurm runs a copy of this file that lies elsewhere

# the settings, or a message that lists the tasks and exit status 1
printed=$(python -m dllm.core.eval.settings "$@")
mapfile -t settings <<<"$printed"
job=${SLURM_JOB_ID:-$(date +%Y%m%d-%H%M%S)}
mkdir -p .logs
program=(-m dllm.core.eval "${settings[@]}" --output_path ".logs/${1,,}_${2}_${job}_samples.json")
export HF_ALLOW_CODE_EVAL=1

nodes=${SLURM_NNODES:-1}
per_node=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}
if [[ -z $per_node && -z ${SLURM_JOB_ID:-} ]]; then
    per_node=$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')
fi
[[ $per_node =~ ^[1-9][0-9]*$ ]] || fail "must have GPUs (sbatch --gres gpu:N), or PROCESSES_PER_NODE set"

echo "$2 on $3 by the settings of $1: $nodes machines, $per_node processes each"
if [[ -z ${SLURM_JOB_ID:-} ]]; then
    if ((per_node == 1)); then
        exec python "${program[@]}"
    fi
    exec python -m torch.distributed.run --standalone --nproc-per-node "$per_node" "${program[@]}"
fi
machines=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${machines%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs on one machine do not meet
# Each machine runs one launcher, which starts its processes; which machine this is, is known there only.
launcher=(
    python -m torch.distributed.run --nnodes "$nodes" --nproc-per-node "$per_node"
    --master-addr "$first" --master-port "$port"
)
# shellcheck disable=SC2016 # the task expands its own rank
exec srun --kill-on-bad-exit=1 bash -c '"${@:2:$1}" --node-rank "$SLURM_NODEID" "${@:$1+2}"' \
    launcher "${#launcher[@]}" "${launcher[@]}" "${program[@]}"
