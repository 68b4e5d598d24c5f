#!/usr/bin/env bash
# A run with mpirun as the launcher; gradients travel over gloo or NCCL all the same.
#
#   HOSTS=node0:2,node1:2 launch/mpi/train.sh --compress dgc --epochs 90
#
# What follows the script's name goes to launch/train.py. The checkout has the same path on every host. If a rank
# dies, mpirun ends the others; start it again and it goes on from the last checkpoint. SIGUSR1 to mpirun ends the run
# with a checkpoint (kill -USR1 PID; mpirun hands it on to the ranks).
#
# Edit these, or set them in the environment:
HOSTS="${HOSTS:-localhost:2}"               # host:ranks, separated by commas; the first one is where ranks meet
PORT="${PORT:-29500}"                       # free on the first host
CHECKPOINTS="${CHECKPOINTS:-runs/mpi}"      # on a disk that all hosts see; else each keeps its own ranks' files
PYTHON="${PYTHON:-python3}"                 # of the environment that dgcomp is installed in
MPIRUN_OPTIONS="${MPIRUN_OPTIONS:-}"        # such as --allow-run-as-root in a container
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
set -euo pipefail
cd "$(dirname "$0")/../.."

first="${HOSTS%%,*}"
export MASTER_ADDR="${MASTER_ADDR:-${first%%:*}}" MASTER_PORT="$PORT"
read -ra options <<<"$MPIRUN_OPTIONS"
# without binding: it would give all threads of a rank one core
exec mpirun --host "$HOSTS" --bind-to none "${options[@]}" -x MASTER_ADDR -x MASTER_PORT -x OMP_NUM_THREADS \
  launch/mpi/rank.sh "$PYTHON" launch/train.py --checkpoint-folder "$CHECKPOINTS" --resume "$@"
