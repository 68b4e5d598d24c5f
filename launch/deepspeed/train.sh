#!/usr/bin/env bash
# A run with DeepSpeed's launcher: for clusters that are set up for it. launch/train.py itself is plain DDP; a script
# of your own that uses the DeepSpeed engine is started the same way, as SCRIPT.
#
#   RANKS_PER_NODE=2 launch/deepspeed/train.sh --compress dgc --epochs 90
#   HOSTFILE=launch/deepspeed/hostfile launch/deepspeed/train.sh --compress dgc --epochs 90
#
# What follows the script's name goes to launch/train.py. With a hostfile DeepSpeed starts the hosts through pdsh (or
# what --launcher in DEEPSPEED_OPTIONS names) and password-less ssh; the checkout has the same path on all of them.
#
# Edit these, or set them in the environment:
HOSTFILE="${HOSTFILE:-}"                      # lines such as `node0 slots=2`; empty: this machine alone
RANKS_PER_NODE="${RANKS_PER_NODE:-2}"         # GPUs of a node, or processes on its CPU
PORT="${PORT:-29500}"                         # free on the first host
SCRIPT="${SCRIPT:-launch/train.py}"           # options for checkpoints are added for launch/train.py alone
CHECKPOINTS="${CHECKPOINTS:-runs/deepspeed}"  # on a disk that all hosts see; else each keeps its own ranks' files
DEEPSPEED="${DEEPSPEED:-deepspeed}"           # of the environment that dgcomp is installed in
DEEPSPEED_OPTIONS="${DEEPSPEED_OPTIONS:-}"    # such as --launcher openmpi
# export DS_ACCELERATOR=cpu                   # where there is no GPU
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
set -euo pipefail
cd "$(dirname "$0")/../.."

# without a hostfile of its own DeepSpeed would look for the cluster's at /job/hostfile
hosts=(--hostfile "${HOSTFILE:-/dev/null}")
read -ra options <<<"$DEEPSPEED_OPTIONS"
if [[ "$SCRIPT" == launch/train.py ]]; then
  set -- --checkpoint-folder "$CHECKPOINTS" --resume "$@"
fi
# --no_local_rank: the rank is in the environment, and launch/train.py knows no option --local_rank
exec "$DEEPSPEED" "${hosts[@]}" --num_gpus "$RANKS_PER_NODE" --master_port "$PORT" --no_local_rank "${options[@]}" \
  "$SCRIPT" "$@"
