"""All checks of the distributed loss and of split weights, in one spawn of two processes and one of four."""

import gc
import os
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from configuration_condvit import CondViTConfig
from lrvsf.processes import gather_rows
from lrvsf.training.fast_tower import use_patch_product
from lrvsf.training.objective.grad_cache import cached_step
from lrvsf.training.objective.loss import info_nce, rows_that_share
from lrvsf.training.sharding import SplitWeights, WholeWeights
from modeling_condvit import CondViTModel

SCALE = torch.tensor(2.0, dtype=torch.float64)
GOLDEN = Path(__file__).parents[1] / "golden" / "contrastive_loss.safetensors"


def encoder():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)).double()


def batch():
    """Twelve pairs, of which each process's differ in scale and mean: a scheme that mixes ranks up cannot pass."""
    generator = torch.Generator().manual_seed(1)
    pairs = torch.randn(2, 12, 6, generator=generator, dtype=torch.float64)
    return pairs * torch.arange(1, 13)[:, None] / 4 + torch.linspace(-1, 1, 12)[:, None]


def embed(model, inputs):
    rows = F.normalize(model(torch.cat([inputs["queries"], inputs["targets"]])), dim=-1)  # one forward a step
    return tuple(rows.chunk(2))


def contrast(model, scale, queries, targets):
    return info_nce(*embed(model, {"queries": queries, "targets": targets}), scale)


def assert_near(got, expected):
    """Equal but for the order of float64 sums."""
    assert (got - expected).norm() <= 1e-12 * expected.norm(), (got, expected)


def check_encoder_gradients(rank, world):
    """DistributedDataParallel's mean is the whole batch's gradient, in one step and in chunks, the last one uneven."""
    expected_loss, expected, expected_scale = torch.load(os.environ["EXPECTED"], weights_only=True)
    queries, targets = (rows.chunk(world)[rank] for rows in batch())
    for chunk in (None, 8 // world):  # of 12 // world rows
        scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        replica = DistributedDataParallel(encoder())  # kept: without it backward reduces nothing
        if chunk is None:
            loss = contrast(replica, scale, queries, targets)
            loss.backward()
        else:
            inputs = {"queries": queries, "targets": targets}
            loss = cached_step(replica, inputs, chunk, embed, info_nce, scale, torch.Tensor.backward)
        total = loss.detach().clone()
        dist.all_reduce(scale.grad)
        dist.all_reduce(total)
        assert_near(total / world, expected_loss)
        assert_near(scale.grad / world, expected_scale)
        for parameter, gradient in zip(replica.parameters(), expected, strict=True):
            assert_near(parameter.grad, gradient)


def pictures():
    """Of `batch`'s rows; 1 and 2 are shared within a process and across them, and the last row has one more."""
    numbers = torch.arange(10, 34).view(12, 2)
    numbers[[0, 1, 7, 11], 0], numbers[[3, 4], 1] = 1, 2
    return torch.cat([numbers, torch.tensor([0] * 11 + [40])[:, None]], dim=1)


def check_shared_pictures(rank, world):
    """Products of one picture are no negatives, wherever they are: the whole batch's loss and gradient."""
    expected_loss, expected = torch.load(os.environ["EXPECTED_SHARED"], weights_only=True)
    queries, targets = (rows.chunk(world)[rank] for rows in batch())
    own = pictures().chunk(world)[rank]
    together = rows_that_share(own if rank == world - 1 else own[:, :2])  # as wide as its own rows need
    replica = DistributedDataParallel(encoder())
    loss = info_nce(*embed(replica, {"queries": queries, "targets": targets}), SCALE, together)
    loss.backward()
    total = loss.detach().clone()
    dist.all_reduce(total)
    assert_near(total / world, expected_loss)
    for parameter, gradient in zip(replica.parameters(), expected, strict=True):
        assert_near(parameter.grad, gradient)
    assert rows_that_share(torch.arange(12)[:, None].chunk(world)[rank] + 1) is None


def check_golden_gradients(rank, world):
    numbers = load_file(GOLDEN)
    mine = slice(8 // world * rank, 8 // world * (rank + 1))
    queries, targets = (numbers[key][mine].clone().requires_grad_() for key in ("complex", "simple"))
    info_nce(F.normalize(queries, dim=-1), F.normalize(targets, dim=-1), numbers["logit_scale"]).backward()
    for rows, key in ((queries, "grad.complex"), (targets, "grad.simple")):
        torch.testing.assert_close(rows.grad / world, numbers[key][mine], rtol=0, atol=1e-9)


def check_gather(rank, world):
    rows = torch.full((2, 3), float(rank), requires_grad=True)
    everybody = gather_rows(rows)
    assert everybody[:, 0].tolist() == [r for r in range(world) for _ in range(2)]
    (everybody * (rank + 1)).sum().backward()
    assert (rows.grad == sum(range(1, world + 1))).all(), "1 from rank 0, 2 from rank 1, ..."


def tower():
    """Two layers and ten categories, which four processes cannot split evenly; wide enough to tell images apart."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"image_size": 16, "patch_size": 8, "projection_dim": 12}
    model = CondViTModel(CondViTConfig(**shape, logit_scale_init_value=1.0, initializer_factor=5.0)).double()
    model._embed = lambda pooled: F.normalize(model.visual_projection(pooled), dim=-1)  # in float64
    return use_patch_product(model)


def tower_loss(weights, images, categories):
    output = weights.model(images[0], categories, images[1])
    return info_nce(output.image_embeds, output.target_embeds, weights.logit_scale())


def tower_batch():
    images = torch.randn(2, 12, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return images, torch.arange(12) % 10


def check_split_tower(rank, world):
    """Each process holds its share of the weights, which have the whole batch's gradients; saved they are as before."""
    expected = torch.load(os.environ["EXPECTED_TOWER"], weights_only=True)
    before, model = tower(), tower()
    weights = SplitWeights(model, Accelerator(cpu=True))
    images, categories = tower_batch()
    mine = slice(12 // world * rank, 12 // world * (rank + 1))
    tower_loss(weights, images[:, mine], categories[mine]).backward()
    weights.average_scale_gradient()
    held = 0
    for name, parameter in model.named_parameters():
        held += parameter.to_local().numel()
        gradient = parameter.grad.full_tensor()
        assert (gradient - expected[name]).norm() <= 1e-12 * max(expected[name].norm(), 1), name
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert_near(norm, torch.stack([gradient.norm() for gradient in expected.values()]).norm())
    total = sum(parameter.numel() for parameter in before.parameters())
    assert held < 1.1 * total / world
    everywhere, on_first = weights.gathered(everywhere=True), weights.gathered(everywhere=False)
    assert (on_first is None) == (rank > 0)
    for plain in filter(None, (everywhere, on_first)):
        for kind in ("named_parameters", "named_buffers"):
            for (name, old), (_, new) in zip(getattr(before, kind)(), getattr(plain, kind)(), strict=True):
                assert torch.equal(old, new), name


def check_split_tower_under_bf16(rank, world):
    """Accelerate's autocast reaches it: embeddings are those of the whole tower under autocast, not float32's."""
    AcceleratorState._reset_state()
    images, categories = tower_batch()
    model = tower().float()
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(images[0].float(), categories).image_embeds
    exact = model(images[0].float(), categories).image_embeds
    SplitWeights(model, Accelerator(cpu=True, mixed_precision="bf16"))
    got = model(images[0].float(), categories).image_embeds
    assert torch.equal(got, expected.float()) and not torch.equal(got, exact)


def worker(rank, world):
    dist.init_process_group("gloo", rank=rank, world_size=world)
    for check in (
        check_gather,
        check_golden_gradients,
        check_encoder_gradients,
        check_shared_pictures,
        check_split_tower,
        check_split_tower_under_bf16,
    ):
        check(rank, world)
    gc.collect()  # what still holds the group would take it down with the interpreter, where its threads abort
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_equal_one(tmp_path, monkeypatch, world):
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    model = encoder()
    loss = contrast(model, scale, *batch())
    loss.backward()
    torch.save((loss.detach(), [p.grad for p in model.parameters()], scale.grad), tmp_path / "expected.pt")
    model = encoder()
    embedded = embed(model, dict(zip(("queries", "targets"), batch(), strict=True)))
    loss = info_nce(*embedded, SCALE, rows_that_share(pictures()))
    loss.backward()
    torch.save((loss.detach(), [p.grad for p in model.parameters()]), tmp_path / "shared.pt")
    monkeypatch.setenv("EXPECTED_SHARED", str(tmp_path / "shared.pt"))
    reference = tower()
    tower_loss(WholeWeights(reference), *tower_batch()).backward()
    torch.save({name: p.grad for name, p in reference.named_parameters()}, tmp_path / "tower.pt")
    monkeypatch.setenv("EXPECTED_TOWER", str(tmp_path / "tower.pt"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"EXPECTED": tmp_path / "expected.pt", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    context, deadline = mp.spawn(worker, args=(world,), nprocs=world, join=False), time.monotonic() + 120
    while not context.join(timeout=1):  # raises what a process raised; True when all have ended
        assert time.monotonic() < deadline, "the processes did not end"
