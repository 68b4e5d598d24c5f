#!/usr/bin/env bash
# One rank of launch/horovod/train.sh: gives torch the names of what horovodrun calls otherwise. Nothing to edit.
set -euo pipefail
export RANK="${HOROVOD_RANK:?not started by horovodrun}"
export WORLD_SIZE="${HOROVOD_SIZE:?not started by horovodrun}"
export LOCAL_RANK="${HOROVOD_LOCAL_RANK:?not started by horovodrun}"
exec "$@"
