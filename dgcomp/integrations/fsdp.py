"""FSDP2: parameters sharded inside a node by FSDP, gradients compressed between the nodes.

The mesh has two dimensions, (nodes, ranks of a node), and the model is sharded on the second one alone:
`fully_shard(layer, mesh=mesh["shard"])`. The reduce-scatter then averages inside the node, and what stands in the slot
of the inter-node all-reduce (`FSDPModule.set_all_reduce_hook`) is this exchange. On the two-dimensional mesh FSDP would
make a dense all-reduce of its own first.

u and v are sharded like the parameters. A step is handled when backward is over, all gradients together, for the same
reasons as in DDP (dgcomp/compressor.py).
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from dgcomp.compressor import STATE_VERSION, Compressor
from dgcomp.config import DGCConfig
from dgcomp.errors import raise_together
from dgcomp.memory import local_part
from dgcomp.passes import Passes
from dgcomp.takeover import check_modules


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: DGCConfig | None = None,
    *,
    mesh: DeviceMesh,
    grad_scaler: Any = None,
) -> "FSDPState":
    """Compress the gradients that an FSDP2 model exchanges between nodes; collective: call it on every rank.

    Parameters
    ----------
    model : module that `fully_shard` was applied to, on the second dimension of `mesh`
    optimizer : torch.optim.Optimizer, made after fully_shard
    config : DGCConfig, optional; `ranks_per_node` stays 1, the mesh says what a node is
    mesh : DeviceMesh of two dimensions, (nodes, ranks of a node)
    grad_scaler : torch.amp.GradScaler, optional

    Raises
    ------
    TypeError, ValueError, RuntimeError
        On every rank alike: model, mesh, optimizer or config cannot be served, or differ between the ranks.
    """
    config = config or DGCConfig()
    _check(model, config, mesh)
    complaint, state = None, None
    try:
        state = FSDPState.attached(
            model.named_parameters(), optimizer, config, group=mesh.get_group(0), mesh=mesh, grad_scaler=grad_scaler
        )
    except (TypeError, ValueError, RuntimeError) as error:
        complaint = str(error)
    # The groups of the other shards have to hear of it as well.
    raise_together(complaint, group=mesh.get_group(1), device=torch.device(mesh.device_type))
    assert state is not None
    state.watch(model)
    return state


class FSDPState(Compressor):
    """The compressor of an FSDP2 model; goes into torch.distributed.checkpoint as it is, as a Stateful.

    `dcp.save({"model": ..., "dgc": state}, checkpoint_id=...)`. u and v of every node are DTensors of the shape
    (nodes, *parameter's shape), so that a checkpoint resumes exactly on as many nodes, of any number of ranks each. On
    another number of nodes all start from the means; load with DefaultLoadPlanner(allow_partial_load=True) then, since
    the nodes' own tensors are not in the checkpoint.
    """

    def __init__(self, parameters: Any, config: DGCConfig | None = None, *, mesh: DeviceMesh, **options: Any):
        super().__init__(parameters, config, shards=mesh.get_group(1), **options)
        self.mesh = mesh
        self._has_gradients = False

    def watch(self, model: nn.Module) -> None:
        """Take the slot of the all-reduce in every FSDP module."""
        module: Any
        for module in model.modules():
            if hasattr(module, "set_all_reduce_hook"):
                module.set_all_reduce_hook(self._after_reduce_scatter)
        self._passes = Passes(model, self._names, self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as DTensors and tensors. Collective: call it on every rank."""
        memory = super().state_dict()["memory"]
        rates = [memory["learning_rates"][slot.name] for slot in self.memory.sparse]
        return {
            "nodes": torch.tensor(self.world_size),
            "step": torch.tensor(self.step),
            "learning_rates": torch.tensor(rates, dtype=torch.float64),
            "flags": torch.tensor([memory["replicated"], memory["residual_in_gradient"]]),
            self._own_key: _map(memory["own"], self._of_all_nodes),
            "mean": _map(memory["mean"], self._like_parameter),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what torch.distributed.checkpoint has read; collective."""
        names = [slot.name for slot in self.memory.sparse]
        nodes = int(state["nodes"])
        is_own = nodes == self.world_size
        own = {key: {n: local_part(t)[0] for n, t in tensors.items()} for key, tensors in state[self._own_key].items()}
        memory = {
            "mean": _map(state["mean"], lambda _name, tensor: local_part(tensor)),
            "thresholds": dict.fromkeys(names, float("inf")),  # hints, and each rank's own
            "learning_rates": dict(zip(names, state["learning_rates"].tolist(), strict=True)),
            "replicated": bool(state["flags"][0]) and is_own,
            "residual_in_gradient": bool(state["flags"][1]),
        }
        memory["own"] = own if is_own else memory["mean"]
        super().load_state_dict(
            {
                "version": STATE_VERSION,
                "world_size": nodes,
                "rank": dist.get_rank(self.group),
                "step": int(state["step"]),
                "regions": {"age": 0, "boundaries": []},  # balanced anew
                "memory": memory,
            }
        )

    @property
    def _own_key(self) -> str:
        return f"own_of_{self.world_size}_nodes"

    def _like_parameter(self, name: str, local: Tensor) -> DTensor:
        parameter = self._parameter(name)
        return DTensor.from_local(
            local,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=_contiguous_stride(parameter.shape),
        )

    def _of_all_nodes(self, name: str, local: Tensor) -> DTensor:
        parameter = self._parameter(name)
        shape = torch.Size((self.world_size, *parameter.shape))
        return DTensor.from_local(
            local.unsqueeze(0),
            self.mesh,
            [Shard(0), Shard(parameter.placements[0].dim + 1)],
            run_check=False,
            shape=shape,
            stride=_contiguous_stride(shape),
        )

    def _parameter(self, name: str) -> Any:
        return next(slot.parameter for slot in self.memory.slots if slot.name == name)

    def _after_reduce_scatter(self, _reduced: Tensor) -> None:
        """Note that this backward makes gradients; FSDP turns `_reduced` into `.grad` after this call."""
        self._has_gradients = True
        # FSDP reduces its last modules in a callback of its own, which was queued before this one.
        torch.autograd.Variable._execution_engine.queue_callback(self._after_backward)

    def _after_backward(self) -> None:
        if not self._has_gradients:
            return
        self._has_gradients = False
        self.reduce_parameter_gradients()


def _check(model: nn.Module, config: DGCConfig, mesh: DeviceMesh) -> None:
    if not hasattr(model, "set_all_reduce_hook"):
        raise TypeError(
            f"model must have been given to fully_shard of torch 2.7 or newer, got {type(model).__name__} in "
            f"torch {torch.__version__}"
        )
    if mesh.ndim != 2:
        raise ValueError(
            f"mesh must have two dimensions, (nodes, ranks of a node), got {mesh.ndim}; "
            'make it with init_device_mesh(device, (nodes, ranks), mesh_dim_names=("replicate", "shard"))'
        )
    if config.ranks_per_node != 1:
        raise ValueError(f"ranks_per_node must be 1, got {config.ranks_per_node}; the mesh says what a node is")
    if config.exchange == "auto":
        raise ValueError('exchange="auto" could choose differently for each shard; choose one of the others')
    check_modules(model)
    ranks = mesh.mesh[mesh.get_local_rank(0)].tolist()
    for name, parameter in model.named_parameters():
        own = getattr(parameter, "device_mesh", None)
        if own is None or own.ndim != 1 or own.mesh.tolist() != ranks:
            raise ValueError(
                f"parameter {name!r} must be sharded on the second dimension of mesh alone, over ranks {ranks}, got "
                f"{'no sharding' if own is None else own.mesh.tolist()}; call fully_shard(..., mesh=mesh[second name])"
            )


def _map(memory: Mapping[str, Mapping[str, Any]], wrap: Any) -> dict[str, dict[str, Any]]:
    return {key: {name: wrap(name, tensor) for name, tensor in tensors.items()} for key, tensors in memory.items()}


def _contiguous_stride(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()
