#!/usr/bin/env bash
# A run on machines that have nothing but ssh: starts launch/torchrun/node.sh on every host and ends when all have.
#
#   HOSTS="node0 node1" RANKS_PER_NODE=2 launch/ssh/train.sh --compress dgc --epochs 90
#
# What follows the script's name goes to launch/train.py. Needs password-less ssh and the checkout at the same path on
# every host. If a host fails, the others are ended; start it again and it goes on from the last checkpoint. Ctrl-C, or
# a lost connection, ends the run with a checkpoint (the hosts' terminals hang up, and torchrun stops its ranks).
#
# Edit these, or set them in the environment:
HOSTS="${HOSTS:-localhost}"                   # names or addresses, separated by spaces; ranks meet on the first one
RANKS_PER_NODE="${RANKS_PER_NODE:-2}"         # GPUs of a host, or processes on its CPU
PORT="${PORT:-29400}"                         # free on the first host
CHECKOUT="${CHECKOUT:-$(dirname "$(dirname "$(dirname "$(realpath "$0")")")")}" # path of the checkout on the hosts
CHECKPOINTS="${CHECKPOINTS:-runs/ssh}"        # on a disk that all hosts see; else each keeps its own ranks' files
PYTHON="${PYTHON:-python3}"                   # on the hosts, of the environment that dgcomp is installed in
SSH="${SSH:-ssh}"
SSH_OPTIONS="${SSH_OPTIONS:-}"                # such as -p 2222
set -euo pipefail

# One word for the shell on the other side, whatever is in it: sshd gives the command to the user's shell.
quoted() { printf " '%s'" "${1//\'/\'\\\'\'}"; }

read -ra hosts <<<"$HOSTS"
read -ra options <<<"$SSH_OPTIONS"
pids=()
stop() { kill "${pids[@]}" 2>/dev/null || true; }
trap stop EXIT
trap 'exit 130' INT TERM
for host in "${hosts[@]}"; do
  command="env"
  for word in "RENDEZVOUS=${hosts[0]#*@}:$PORT" "NODES=${#hosts[@]}" "RANKS_PER_NODE=$RANKS_PER_NODE" \
    "ADDRESS=${host#*@}" "CHECKPOINTS=$CHECKPOINTS" "PYTHON=$PYTHON" "RUN_ID=ssh-$PORT" \
    "$CHECKOUT/launch/torchrun/node.sh" "$@"; do
    command+=$(quoted "$word")
  done
  # -tt: a terminal of its own, which hangs up on the remote processes when the connection ends
  "$SSH" -tt -o BatchMode=yes "${options[@]}" "$host" "$command" </dev/null &
  pids+=($!)
done

status=0
for _ in "${hosts[@]}"; do
  if ! wait -n; then
    status=1
    stop # the others would wait for the ranks of the failed host
  fi
done
exit "$status"
