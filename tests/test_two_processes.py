"""All checks that need two processes, in one spawn: importing the libraries takes longer than the checks."""

import os
import socket
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from lrvsf.training.loss import gather_rows, info_nce

GOLDEN = Path(__file__).parent / "golden" / "contrastive_loss.safetensors"


def encoder():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)).double()


def batch():
    """Eight pairs whose halves differ in scale and mean, so that a scheme that mixes ranks up cannot pass."""
    generator = torch.Generator().manual_seed(1)
    pairs = torch.randn(2, 8, 6, generator=generator, dtype=torch.float64)
    pairs[:, 4:] = 3 * pairs[:, 4:] + 1
    return pairs


def contrast(model, scale, queries, targets):
    embeds = F.normalize(model(torch.cat([queries, targets])), dim=-1)
    return info_nce(*embeds.chunk(2), scale)


def check_encoder_gradients(rank):
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    model = encoder()
    queries, targets = batch()
    mine = slice(4 * rank, 4 * rank + 4)
    replica = DistributedDataParallel(model)  # kept: without it backward reduces nothing
    loss = contrast(replica, scale, queries[mine], targets[mine])
    loss.backward()
    dist.all_reduce(scale.grad)
    expected_loss, expected, expected_scale = torch.load(os.environ["EXPECTED"], weights_only=True)
    total = loss.detach().clone()
    dist.all_reduce(total)
    torch.testing.assert_close(total / 2, expected_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(scale.grad / 2, expected_scale, rtol=1e-12, atol=0)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-14)


def check_golden_gradients(rank):
    numbers = load_file(GOLDEN)
    mine = slice(4 * rank, 4 * rank + 4)
    queries, targets = (numbers[key][mine].clone().requires_grad_() for key in ("complex", "simple"))
    info_nce(F.normalize(queries, dim=-1), F.normalize(targets, dim=-1), numbers["logit_scale"]).backward()
    for rows, key in ((queries, "grad.complex"), (targets, "grad.simple")):
        torch.testing.assert_close(rows.grad / 2, numbers[key][mine], rtol=0, atol=1e-9)


def check_gather(rank):
    rows = torch.full((2, 3), float(rank), requires_grad=True)
    everybody = gather_rows(rows)
    assert everybody[:, 0].tolist() == [0, 0, 1, 1]
    (everybody * (rank + 1)).sum().backward()
    assert (rows.grad == 3).all(), "1 from rank 0 and 2 from rank 1"


def worker(rank):
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for check in (check_gather, check_golden_gradients, check_encoder_gradients):
        check(rank)
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path, monkeypatch):
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    model = encoder()
    loss = contrast(model, scale, *batch())
    loss.backward()
    torch.save((loss.detach(), [p.grad for p in model.parameters()], scale.grad), tmp_path / "expected.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"EXPECTED": tmp_path / "expected.pt", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    context, deadline = mp.spawn(worker, nprocs=2, join=False), time.monotonic() + 120
    while not context.join(timeout=1):  # raises what a process raised; True when both have ended
        assert time.monotonic() < deadline, "the two processes did not end"
