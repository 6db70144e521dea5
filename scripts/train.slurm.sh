#!/usr/bin/env bash
# Train on a Slurm cluster, on one machine or several:
#
#     sbatch --nodes 2 --gres gpu:8 scripts/train.slurm.sh \
#         --accelerate_config fsdp2 --script_path examples/bert/sft.py \
#         --model_name_or_path answerdotai/ModernBERT-large --dataset_args allenai/tulu-3-sft-mixture
#
# --accelerate_config  a name in scripts/accelerate_configs (default ddp), or a path
# --script_path        the program, relative to where sbatch was called (default examples/bert/sft.py)
# All other words go to the program as they are. Options of sbatch stand before this file's name and go over the lines
# below. Run where the environment with dllm is active: sbatch hands it on.
#SBATCH --job-name=dllm
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.out
set -euo pipefail

fail() {
    echo "train.slurm.sh: $1" >&2
    exit 2
}

accelerate_config=ddp
script_path=examples/bert/sft.py
program=()
while (($#)); do
    case "$1" in
        --accelerate_config | --script_path)
            (($# > 1)) || fail "$1 must have a value"
            declare "${1#--}=$2"
            shift 2
            ;;
        --accelerate_config=* | --script_path=*)
            word=${1#--}
            declare "${word%%=*}=${word#*=}"
            shift
            ;;
        *)
            program+=("$1")
            shift
            ;;
    esac
done

cd "${SLURM_SUBMIT_DIR:-.}" # Slurm runs a copy of this file that lies elsewhere
[[ -n ${SLURM_JOB_ID:-} ]] || fail "must run in a Slurm job: sbatch scripts/train.slurm.sh ..."
if [[ $accelerate_config != */* ]]; then
    accelerate_config=scripts/accelerate_configs/${accelerate_config%.yaml}.yaml
fi
[[ -f $accelerate_config ]] || fail "there is no file $accelerate_config"
[[ -f $script_path ]] || fail "there is no file $script_path"

nodes=${SLURM_NNODES:-1}
per_node=${SLURM_GPUS_ON_NODE:-${PROCESSES_PER_NODE:-}}
[[ $per_node =~ ^[1-9][0-9]*$ ]] || fail "must have GPUs (sbatch --gres gpu:N), or PROCESSES_PER_NODE set"
machines=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${machines%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs on one machine do not meet

echo "$script_path by $accelerate_config: $nodes machines, $per_node processes each, meeting at $first:$port"
# Each machine runs one launcher, which starts its processes; which machine this is, is known there only.
launcher=(
    accelerate launch --config_file "$accelerate_config"
    --num_machines "$nodes" --num_processes "$((nodes * per_node))"
    --main_process_ip "$first" --main_process_port "$port"
)
# shellcheck disable=SC2016 # the task expands its own rank
exec srun --kill-on-bad-exit=1 bash -c '"${@:2:$1}" --machine_rank "$SLURM_NODEID" "${@:$1+2}"' \
    launcher "${#launcher[@]}" "${launcher[@]}" "$script_path" "${program[@]}"
