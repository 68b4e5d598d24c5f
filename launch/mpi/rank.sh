#!/usr/bin/env bash
# One rank of launch/mpi/train.sh: gives torch the names of what mpirun calls otherwise. Nothing to edit.
# Open MPI's variables; those of MPICH and Intel MPI (not run here) if they are absent.
set -euo pipefail
export RANK="${OMPI_COMM_WORLD_RANK:-${PMI_RANK:?not started by mpirun}}"
export WORLD_SIZE="${OMPI_COMM_WORLD_SIZE:-${PMI_SIZE:?not started by mpirun}}"
export LOCAL_RANK="${OMPI_COMM_WORLD_LOCAL_RANK:-${MPI_LOCALRANKID:?not started by mpirun}}"
exec "$@"
