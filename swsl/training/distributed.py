"""The processes of a training run: one, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..deploy.eager import pick_device

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among the others. Its methods are collective where ``world`` is above 1: all processes must call them."""

    rank: int
    world: int
    device: torch.device
    _wrappers: list[DistributedDataParallel] = field(default_factory=list, compare=False)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of every process's ``tensor``, in place."""
        if self.world > 1:
            on_device = tensor.to(self.device)  # NCCL has no CPU tensors
            dist.all_reduce(on_device)
            tensor.copy_(on_device)
        return tensor

    def wrap(self, model: nn.Module) -> DistributedDataParallel:
        """A model whose gradients are every process's mean, until the processes part."""
        wrapper = DistributedDataParallel(model)
        self._wrappers.append(wrapper)
        return wrapper

    def part(self) -> None:
        """Leave the others. The group's destructor waits for gloo's threads, and these may wait for the GIL: Python's own reference
        releases it, and so has to be the last. A wrapper's would be, where a variable or a traceback still holds it."""
        for wrapper in self._wrappers:
            vars(wrapper).clear()
        dist.destroy_process_group()

    def share(self, tensor: Tensor) -> None:
        """Overwrite every process's ``tensor``, on its device, with the first one's."""
        if self.world > 1:
            dist.broadcast(tensor, 0)

    def gather(self, item: T) -> list[T]:
        """Every process's ``item``, by rank."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item)
        return items


@contextmanager
def joined(device: str = "auto") -> Iterator[Processes]:
    """Join the processes that torchrun started, if it did, and leave them at the end.

    Args:
        device: "cpu", "cuda" or "auto" (a GPU if there is one); each process of a machine takes its own GPU.

    Raises:
        ValueError: no such device, or more processes on this machine than GPUs.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected 'auto', 'cpu' or 'cuda', got {device!r}")
    cuda = pick_device(device).type == "cuda"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(0, 1, torch.device("cuda" if cuda else "cpu"))
        return
    local = int(os.environ["LOCAL_RANK"])
    if cuda and local >= torch.cuda.device_count():
        raise ValueError(
            f"torchrun: process {local} of this machine has no GPU of its own: it sees {torch.cuda.device_count()}; "
            "use --nproc-per-node of at most that many"
        )
    if cuda:
        torch.cuda.set_device(local)
    place = torch.device("cuda", local) if cuda else torch.device("cpu")
    dist.init_process_group("nccl" if cuda else "gloo", device_id=place if cuda else None)
    processes = Processes(dist.get_rank(), world, place)
    try:
        yield processes
    finally:
        processes.part()
