"""Whether the processes of a launch fit together, in the seconds before the model is loaded.

Without it a machine with other data, code or flags shows as a run that waits for ever, or as a model that is worse than
it should be and says nothing. All processes compare the same facts, so all end with the same sentence.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import statistics
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn

from lrvsf.command import explain
from lrvsf.durable import LOCK
from lrvsf.paths import check_training
from lrvsf.processes import every, on_main_process, sum_over, world_size
from lrvsf.training.arguments import CondViTTrainingArguments, ModelArguments
from lrvsf.training.launch.agreement import differing, places
from lrvsf.training.launch.process_facts import REMEDIES, facts_of

logger = logging.getLogger(__name__)

SILENCE = 30.0  # seconds without an answer after which a user is told where to look (not tuned)
LATE = 5.0  # seconds that a network's file system may take to show a new file (not tuned)
REDUCED, TURNS = 16 << 20, 3  # bytes that are summed at a time, and how often: a second at a gigabit, less elsewhere
SLOW = 1.0  # seconds a step above which the exchange of gradients is worth a warning (not tuned)


def check_processes(asked: Namespace, args: ModelArguments, training: CondViTTrainingArguments) -> float | None:
    """Compares what the processes know of the run, and measures how quickly they reach each other.

    Args:
        asked: the flags, as `check_training` takes them.

    Returns: bytes/s of an all-reduce; None where one process works alone, and nothing is compared.

    Raises ValueError: they do not fit together, or one of them refuses the run; the same on all.
    """
    if world_size() == 1:
        return None
    facts, fault = {}, None
    try:
        check_training(asked)
        facts = facts_of(args, training)
    except Exception as error:  # whatever it is: the others wait for this process's word
        fault = error
    with _told_of_silence():
        everybody = every((socket.gethostname(), facts, fault and explain(fault)))
    hosts, said, faults = zip(*everybody, strict=True)
    if any(faults):
        raise ValueError(_told(faults, hosts)) from fault
    if told := differing(said, hosts, REMEDIES):
        raise ValueError("\n".join(told))
    rate = _all_reduce_rate(training.device)
    if PartialState().is_main_process:
        machines = "one machine" if len(set(hosts)) == 1 else f"{len(set(hosts))} machines"
        print(f"{len(hosts)} processes on {machines}, all-reduce {rate / 1e9:.3g} GB/s", flush=True)
    return rate


def check_shared(folder: Path) -> None:
    """Looks whether all processes see the output folder that the main process has locked.

    Raises ValueError: some have another one. They would leave parts of checkpoints there that nobody finds again.
    """
    if world_size() == 1:
        return
    # The main process must not open its lock once more: closing it would give it up.
    named, *holder = on_main_process(lambda: (folder, socket.gethostname(), os.getpid()))
    sees = PartialState().is_main_process or _sees_lock(folder, holder)
    hosts, seen = zip(*every((socket.gethostname(), sees)), strict=True)
    if blind := [rank for rank, sees in enumerate(seen) if not sees]:
        raise ValueError(
            f"output_dir={named} is another folder on {places(blind, hosts)} than on {hosts[0]}, which saves "
            "checkpoints there. Name a folder that all machines share"
        )


def warn_of_slow_gradients(rate: float | None, model: nn.Module) -> None:
    """Says what the exchange of a model's gradients takes, where that is long.

    Args:
        rate: bytes/s, as `check_processes` measured.
    """
    if rate is None or not PartialState().is_main_process:
        return
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if (seconds := 4 * count / rate) > SLOW:
        logger.warning(
            "The gradients of %.0f million weights, %.2f GB, take about %.1f seconds a step to be summed over the "
            "processes, of which the backward pass hides a part. Use a faster network (NCCL_SOCKET_IFNAME or "
            "GLOO_SOCKET_IFNAME names it), or fewer machines.",
            *(count / 1e6, 4 * count / 1e9, seconds),
        )


def _told(faults: tuple[str | None, ...], hosts: tuple[str, ...]) -> str:
    """What some processes refuse, with their places where others do not."""
    ranks: dict[str, list[int]] = {}
    for rank, fault in enumerate(faults):
        if fault:
            ranks.setdefault(fault, []).append(rank)
    if list(map(len, ranks.values())) == [len(hosts)]:
        return next(iter(ranks))
    told = "; ".join(f"on {places(own, hosts)}: {fault}" for fault, own in ranks.items())
    fine = [rank for rank, fault in enumerate(faults) if not fault]
    return told + (f". On {places(fine, hosts)} nothing is wrong: all machines need the same folders" if fine else "")


def _all_reduce_rate(device: torch.device) -> float:
    """Bytes/s: the size of a tensor over the time to sum it over all processes."""
    tensor, seconds = torch.zeros(REDUCED // 4, device=device), []
    for _ in range(1 + TURNS):  # the first one makes the connections
        begin = time.perf_counter()
        sum_over(tensor)
        tensor[0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - begin)
    return REDUCED / statistics.median(seconds[1:])


def _sees_lock(folder: Path, holder: list[str | int]) -> bool:
    """Whether the lock in the folder is that of a process, [host, id]."""
    deadline = time.monotonic() + LATE
    while True:
        try:
            os.listdir(folder)  # asks a network's file system anew, which remembers what was not there
            about = json.loads((folder / LOCK).read_text())
            if [about["host"], about["pid"]] == holder:
                return True
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there, or half written
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


@contextmanager
def _told_of_silence() -> Iterator[None]:
    """While the processes first speak to each other, says where to look if they do not: a firewall is never told of."""
    where = "see whether the machines reach each other on all ports; NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME"
    told = (
        f"{socket.gethostname()}: no answer from the other processes for {SILENCE:g} seconds; {where} names the network"
    )
    timer = threading.Timer(SILENCE, print, (told,), {"file": sys.stderr, "flush": True})
    timer.daemon = True
    if PartialState().is_local_main_process:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
