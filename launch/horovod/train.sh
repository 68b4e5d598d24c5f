#!/usr/bin/env bash
# A run with horovodrun.
#
#   HOSTS=node0:2,node1:2 SCRIPT=my_script.py launch/horovod/train.sh --my-options
#   HOSTS=localhost:2 launch/horovod/train.sh --compress dgc --epochs 90
#
# SCRIPT is your own, with Horovod's optimizer or dgcomp's. Without one, horovodrun is only the launcher: it starts
# launch/train.py, which is plain DDP, with the ranks that Horovod gives out. What follows the script's name goes to
# SCRIPT. horovodrun reaches other hosts by password-less ssh; the checkout has the same path on all of them.
#
# Edit these, or set them in the environment:
HOSTS="${HOSTS:-localhost:2}"               # host:ranks, separated by commas; the first one is where ranks meet
SCRIPT="${SCRIPT:-launch/train.py}"         # options for checkpoints are added for launch/train.py alone
PORT="${PORT:-29500}"                       # launch/train.py: free on the first host
CHECKPOINTS="${CHECKPOINTS:-runs/horovod}"  # on a disk that all hosts see; else each keeps its own ranks' files
PYTHON="${PYTHON:-python3}"                 # of the environment that Horovod and dgcomp are installed in
HOROVODRUN="${HOROVODRUN:-horovodrun}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
set -euo pipefail
cd "$(dirname "$0")/../.."

num_ranks=0
IFS=, read -ra hosts <<<"$HOSTS"
for host in "${hosts[@]}"; do
  if [[ ! "${host##*:}" =~ ^[0-9]+$ ]]; then
    echo "HOSTS must be host:ranks, separated by commas, got $HOSTS" >&2
    exit 2
  fi
  num_ranks=$((num_ranks + ${host##*:}))
done
export MASTER_ADDR="${MASTER_ADDR:-${hosts[0]%%:*}}" MASTER_PORT="$PORT"
if [[ "$SCRIPT" == launch/train.py ]]; then
  set -- --checkpoint-folder "$CHECKPOINTS" --resume "$@"
fi
# horovodrun hands its whole environment on, and joins the words of the command, quoted, for a shell
exec "$HOROVODRUN" --gloo -np "$num_ranks" -H "$HOSTS" launch/horovod/rank.sh "$PYTHON" "$SCRIPT" "$@"
