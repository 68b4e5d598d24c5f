"""Train a small network on every process that torchrun starts; docs/dgc_ddp.py is this file with two lines more."""

import gc

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    centers, images, labels = torch.randn(10, 256), torch.randn(4096, 256), torch.randint(10, (4096,))
    images = images + 0.3 * centers[labels]
    own = slice(dist.get_rank(), 3072, dist.get_world_size())  # the last 1,024 are for testing

    model = DistributedDataParallel(nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
    for _ in range(8):
        for inputs, targets in zip(images[own].split(16), labels[own].split(16), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    if dist.get_rank() == 0:
        right = model.module(images[3072:]).argmax(1) == labels[3072:]
        print(f"test accuracy {100 * right.float().mean():.1f} %")
    del model, optimizer
    gc.collect()  # DDP before its process group, or gloo's threads may abort the interpreter's exit
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
