"""The DDP communication hook: glue between DDP's buckets and DGCState.

DDP reads the annotations of a hook and calls it by keyword: they must be real types, and the second parameter must be
named `bucket`.
"""

import torch
import torch.distributed as dist

from dgcomp.state import DGCState


def dgc_hook(state: DGCState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Exchange a bucket of gradients by Deep Gradient Compression; register it with a DGCState.

    The future is complete when the last bucket of the backward pass has been handled. No collective is ever issued
    from a callback: on gloo that deadlocks as soon as there are two buckets.
    """
    device = bucket.buffer().device
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future(
        devices=[device] if device.type == "cuda" else None
    )
    state.add_bucket(bucket, future)
    return future
