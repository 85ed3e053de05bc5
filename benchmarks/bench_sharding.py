"""Memory of training on two processes, with weights whole on each (DDP) and split over them (--shard_weights True).

    python benchmarks/bench_sharding.py [--tower L/14] [--pairs 2]

Two steps of AdamW with checkpointed layers and random weights at the tower's real size, by CondViTTrainer's own parts,
on this machine's CPU (gloo). Printed is what each process holds between steps, counted, and the peak of its resident
memory, whose rest is Python, libraries and one layer's work.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent.parent))

from train_parts import SHAPES

from configuration_condvit import CondViTConfig
from lrvsf.training.fast_tower import use_patch_product
from lrvsf.training.objective.loss import info_nce
from lrvsf.training.sharding import SplitWeights, WholeWeights
from modeling_condvit import CondViTModel


def megabytes(tensors) -> float:
    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    return sum(tensor.numel() * tensor.element_size() for tensor in local) / 1e6


def train(rank: int, sharded: bool, tower: str, pairs: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    shape = SHAPES[tower]
    config = CondViTConfig(
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        patch_size=shape.patch,
        image_size=shape.size,
        projection_dim=shape.projection,
    )
    model = use_patch_product(CondViTModel(config)).train()
    model.gradient_checkpointing_enable()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    parts = SplitWeights(model, accelerator) if sharded else WholeWeights(model)
    replica = model if sharded else DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    for _ in range(2):
        pixels = torch.randn(2, pairs, 3, shape.size, shape.size)
        with torch.autocast("cpu", torch.bfloat16):
            output = replica(pixels[0], torch.arange(pairs) % shape.categories, pixels[1])
            info_nce(output.image_embeds, output.target_embeds, parts.logit_scale()).backward()
        parts.average_scale_gradient()
        optimizer.step()
        gradients = megabytes(parameter.grad for parameter in model.parameters())
        optimizer.zero_grad()
    weights = megabytes(model.parameters())
    moments = megabytes(value for entry in optimizer.state.values() for value in entry.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    if rank == 0:
        way = "split" if sharded else "whole"
        print(f"{way:>7}{weights:>10.0f}{gradients:>11.0f}{moments:>10.0f}{peak:>10.0f}", flush=True)
    del replica, model, optimizer
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", choices=SHAPES, default="L/14")
    parser.add_argument("--pairs", type=int, default=2, help="of each process")
    args = parser.parse_args()
    print(f"{args.tower}, MB of one of two processes")
    print(f"{'':>7}{'weights':>10}{'gradients':>11}{'moments':>10}{'peak':>10}")
    for sharded in (False, True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        mp.spawn(train, args=(sharded, args.tower, args.pairs, port), nprocs=2)


if __name__ == "__main__":
    main()
