"""What several processes do together; alone, each of these does the right thing without a process group. And what the
hardware of this one is good at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from lrvsf.durable import locked


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are much faster than float32 here: on GPUs and CPUs that have instructions for them.

    One answer for training, evaluation and text encoders. A CPU has AMX or, like AMD's, AVX-512's alone, by which B/32
    and B/16 embed 2 to 4 times as fast (benchmarks/bench_embed.py, docs/serving.md). Width is not asked: from 192
    on, where CLIP's towers have 768 and Mini's 256, nothing got slower by it (benchmarks/bench_widths.py).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return able.get("avx512_bf16", False) or able.get("amx_bf16", False)


def world_size() -> int:
    """How many processes work together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def sum_over(*tensors: Tensor) -> None:
    """Adds each tensor up over the processes, in place; all processes must call it."""
    for tensor in tensors:
        if world_size() > 1:
            dist.all_reduce(tensor)


def largest_over(tensor: Tensor) -> Tensor:
    """Each number's largest value on any process, in place; all processes must call it."""
    if world_size() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def every(value: Any) -> list[Any]:
    """Each process's value, in rank order; all processes must call it."""
    return gather_object([value])


class _Gather(torch.autograd.Function):
    """(B, D) of each process -> (world x B, D) on each; backward sums over the processes."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]  # world x (B, D)
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        # Each process's loss asks something of every row; the sum is what this row's embedding must answer to. (Its own
        # part alone, as without this line, would be the gradient of another loss.)
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """All processes' rows in rank order, differentiable; the rows themselves on one process. Equal B everywhere."""
    return _Gather.apply(rows) if world_size() > 1 else rows


Result = TypeVar("Result")


def on_main_process(function: Callable[[], Result]) -> Result:
    """What `function` gives, or raises, on the main process: on all of them."""
    # The error travels too: if the main process alone raised it, all others would wait in their next collective.
    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@contextmanager
def alone_in(folder: Path, what: str) -> Iterator[None]:
    """`durable.locked`, by the main process for all of them. Raises InUse: another run works there."""
    # The stack is every process's, the lock in it the main one's: it ends when the main process leaves the block.
    with ExitStack() as locks:
        on_main_process(lambda: locks.enter_context(locked(folder, what)))
        yield


def own_share(rows: int) -> tuple[int, int]:
    """This process's share of the rows, as (start, stop): contiguous, sizes differ by at most one."""
    state = PartialState()
    # One formula for both ends, so that one's stop is the next one's start, whatever the rounding.
    return rows * state.process_index // state.num_processes, rows * (state.process_index + 1) // state.num_processes
