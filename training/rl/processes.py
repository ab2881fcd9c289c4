"""Several processes that train one policy: each computes a share of the rows, and all get the same sums.

Every process holds the whole model and draws the same random numbers. What is per reply (samples, scores,
log-probabilities, gradients) is computed by the process whose row it is and added up over all of them, so a
step is the step of one process but for the order in which floats are added. This is data parallelism
(Goyal et al. 2017, arXiv:1706.02677) without a change of batch size, learning rate or whitening.

`accelerate launch` and `torchrun` start the processes; a single one passes through all of this for nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from training.errors import ConfigError

T = TypeVar("T")
Operation = Literal["sum", "min", "max"]

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among `size`. Everything that adds up must be called by all of them, in one order."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, rows: Sequence[T]) -> Sequence[T]:
        """This process's part of `rows`: the shares of all, one after the other, are `rows`."""
        count = len(rows)
        return rows[self.rank * count // self.size : (self.rank + 1) * count // self.size]

    def add_up(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the processes. Exact where all but one hold zeros."""
        if self.size == 1:
            return
        for tensor in tensors:
            # gloo doesn't add truth values.
            whole = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.contiguous()
            dist.all_reduce(whole)
            tensor.copy_(whole)

    def figures(self, values: Sequence[float], operation: Operation = "sum") -> list[float]:
        """The numbers' sums (or extremes) over the processes."""
        if self.size == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(together, _OPERATIONS[operation])
        summed: list[float] = together.tolist()
        return summed

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its sum; a parameter that has none in any process keeps none."""
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        there = torch.tensor([p.grad is not None for p in trained], dtype=torch.float64)
        dist.all_reduce(there)
        trained = [p for p, found in zip(trained, there.tolist(), strict=True) if found]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in trained if p.grad is not None]
        whole_P = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(whole_P)
        start = 0
        for gradient in gradients:
            gradient.copy_(whole_P[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


ALONE = Processes()


@contextmanager
def launched() -> Iterator[Processes]:
    """The processes that `accelerate launch` or `torchrun` started, connected for as long as the block lasts.

    Raises ConfigError where the launcher was told to shard the weights, which on-policy methods don't.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    for variable in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        if os.environ.get(variable, "false").lower() == "true":
            raise ConfigError(
                "this method keeps the whole model in every process: launch it with "
                "training/accelerate/cpu.yaml or ddp.yaml, or train an adapter (lora) where memory is short"
            )
    if torch.cuda.is_available():
        torch.cuda.set_device(_device())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def on_own_device(model: torch.nn.Module) -> None:
    """Move the model to this process's GPU, where there is one and it isn't there yet."""
    if torch.cuda.is_available() and next(model.parameters()).device != _device():
        model.to(_device())
