#!/usr/bin/env bash
# One node of a run under torchrun. Start it on every node with the same RENDEZVOUS; the order does not matter, and a
# node may be stopped and started again:
#
#   RENDEZVOUS=node0:29400 NODES=2 RANKS_PER_NODE=4 launch/torchrun/node.sh --compress dgc --epochs 90
#
# What follows the script's name goes to launch/train.py. After a fault the ranks that are left start again from the
# last checkpoint, at most MAX_RESTARTS times.
#
# Edit these, or set them in the environment:
RENDEZVOUS="${RENDEZVOUS:-$(hostname):29400}" # one node's name and a free port; the node must stay up
NODES="${NODES:-1}"                           # how many, or MIN:MAX: nodes may then come and go while it trains
RANKS_PER_NODE="${RANKS_PER_NODE:-2}"         # GPUs of a node, or processes on its CPU
RUN_ID="${RUN_ID:-dgcomp}"                    # another one for each run that shares a rendezvous
MAX_RESTARTS="${MAX_RESTARTS:-3}"             # joining nodes do not count
LAST_CALL_SECONDS="${LAST_CALL_SECONDS:-30}"  # with MIN:MAX nodes: how long MIN wait for more before they start
CHECKPOINTS="${CHECKPOINTS:-runs/$RUN_ID}"    # on a disk that all nodes see; else each keeps its own ranks' files
ADDRESS="${ADDRESS:-}"                        # this node's address, if its host name does not lead the others to it
PYTHON="${PYTHON:-python3}"                   # of the environment that dgcomp is installed in
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0   # where a node has several networks
# Otherwise ranks that start again may find the addresses of those before them (pytorch issue 135712; seen with 2.13)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
set -euo pipefail
cd "$(dirname "$0")/../.."

place=() conf="last_call_timeout=$LAST_CALL_SECONDS"
if [[ -n "$ADDRESS" ]]; then
  place=(--local-addr "$ADDRESS")
  # torchrun would compare host names to find out which node keeps the store
  if [[ "${RENDEZVOUS%:*}" == "$ADDRESS" ]]; then conf+=",is_host=true"; else conf+=",is_host=false"; fi
fi
exec "$PYTHON" -m torch.distributed.run \
  --nnodes "$NODES" --nproc-per-node "$RANKS_PER_NODE" --max-restarts "$MAX_RESTARTS" \
  --rdzv-backend c10d --rdzv-endpoint "$RENDEZVOUS" --rdzv-id "$RUN_ID" --rdzv-conf "$conf" "${place[@]}" \
  launch/train.py --checkpoint-folder "$CHECKPOINTS" --resume "$@"
