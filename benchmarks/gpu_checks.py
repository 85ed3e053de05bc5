"""Whether a device computes what a CPU does: embeddings, loss, gradients, ranks, resumed runs.

The reference is the tower in float64 on the CPU. Errors are relative, |found - reference| / |reference| over all
numbers of a kind, and the CPU's own float32 stands beside the device's, so that a reader sees what rounding alone does.
benchmarks/gpu_page.py calls this; `--sharded FOLDER` is what it asks of a process of its own.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from train_parts import SHAPES, both_models, random_batch
from train_stream import our_batches

from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.evaluation.recall import RankCounter
from lrvsf.training.fast_tower import use_patch_product
from lrvsf.training.objective.grad_cache import cached_step
from lrvsf.training.objective.loss import info_nce
from modeling_condvit import CondViTModel
from processing_condvit import IMAGE_MEAN, IMAGE_STD

CPU = torch.device("cpu")
MINI = "assets/mini-condvit"
Found = tuple[float, Tensor, dict[str, Tensor]]  # loss, query embeddings, gradients by name; on the CPU
# What each way may be off by: embeddings, gradients. At a scale of 100 a rounded logit is a hundred times as wrong.
EXACT, HALF = (1e-5, 1e-3), (2e-2, 2e-1)


def relative(found: Tensor, reference: Tensor) -> float:
    return ((found.double() - reference.double()).norm() / reference.double().norm()).item()


def gradient_error(found: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Of all parameters' gradients taken together."""
    off = sum((found[name].double() - reference[name].double()).square().sum().item() for name in reference)
    return (off / sum(gradient.double().square().sum().item() for gradient in reference.values())) ** 0.5


def one_step(
    model: CondViTModel,
    batch: tuple[Tensor, Tensor, Tensor],
    autocast: torch.dtype | None = None,
    chunk: int | None = None,
    call: Callable | None = None,
) -> Found:
    """Loss and gradients of one batch of uint8 images, on the model's device and in its precision.

    `chunk` takes GradCache's two passes; `call` stands for the model where it was compiled.
    """
    parameter = model.logit_scale
    mean, std = (255 * torch.tensor(v, device=parameter.device).view(3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
    queries, categories, targets = (part.to(parameter.device) for part in batch)
    queries, targets = (((x - mean) / std).to(parameter.dtype) for x in (queries, targets))
    inputs = {"pixel_values": queries, "category_indices": categories, "target_pixel_values": targets}
    # float16's gradients vanish unless the loss is scaled; half of the scale that GradScaler starts with.
    scale = 2.0**15 if autocast == torch.float16 else 1.0
    kept: list[Tensor] = []

    def embed(model: CondViTModel, part: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        on = contextlib.nullcontext() if autocast is None else torch.autocast(parameter.device.type, autocast)
        with on:
            output = (model if call is None else call)(**part)
        kept.append(output.image_embeds.detach().cpu())
        return output.image_embeds, output.target_embeds

    model.zero_grad(set_to_none=True)
    if chunk:
        loss = cached_step(model, inputs, chunk, embed, info_nce, parameter, lambda part: part.backward())
        kept = kept[: -(-len(queries) // chunk)]  # the second pass embeds them again
    else:
        loss = info_nce(*embed(model, inputs), parameter)
        (loss * scale).backward()
    gradients = {name: p.grad.cpu() / scale for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), torch.cat(kept), gradients


def compare_ways(name: str, model: CondViTModel, batch: tuple, device: torch.device, compiled: bool) -> list[list]:
    """A row for each way of computing: what it is off by, and whether that is within its bounds."""
    reference = one_step(copy.deepcopy(model).double(), batch)
    rows = []

    def add(way: str, found: Found, bounds: tuple[float, float]) -> None:
        errors = relative(found[1], reference[1]), gradient_error(found[2], reference[2])
        fine = all(error <= bound for error, bound in zip(errors, bounds, strict=True))
        shown = [f"{abs(found[0] - reference[0]):.1e}", *(f"{error:.1e}" for error in errors)]
        rows.append([name, way, *shown, "yes" if fine else f"NO: {bounds}"])

    add("CPU, float32", one_step(model, batch), EXACT)
    here = copy.deepcopy(model).to(device)
    add("float32", one_step(here, batch), EXACT)
    add("float32, GradCache in chunks of 5", one_step(here, batch, chunk=5), EXACT)
    checkpointed = copy.deepcopy(here).train()
    checkpointed.gradient_checkpointing_enable()
    add("float32, layers checkpointed", one_step(checkpointed, batch), EXACT)
    add("bfloat16 autocast", one_step(here, batch, torch.bfloat16), HALF)
    add("bfloat16 autocast, GradCache", one_step(here, batch, torch.bfloat16, chunk=5), HALF)
    add("float16 autocast, scaled", one_step(here, batch, torch.float16), HALF)
    if compiled:
        add("float32, compiled", one_step(here, batch, call=torch.compile(here)), EXACT)
        add("bfloat16, compiled", one_step(here, batch, torch.bfloat16, call=torch.compile(here)), HALF)
    return rows


def step_checks(folder: Path, device: torch.device, tiny: bool) -> list[list]:
    """A trained model on real pairs, and a large tower with random weights on noise."""
    batch = next(iter(our_batches(folder / "train", 96, 8 if tiny else 64, 0, False)))
    trained = CondViTModel.from_pretrained(MINI, dtype=torch.float32)
    rows = compare_ways("Mini CondViT, pairs", use_patch_product(trained), batch, device, compiled=not tiny)
    shape = SHAPES["tiny" if tiny else "B/32"]
    _, random = both_models(shape, "sdpa", CPU)
    return rows + compare_ways("random weights, noise", random, random_batch(shape, 12, CPU), device, compiled=False)


def encoder_checks(folder: Path, device: torch.device, tiny: bool) -> list[list]:
    """The evaluation's embeddings of test pictures on the device against the CPU's in float32."""
    test_set = ProductTestSet(folder / "test")
    products = list(test_set.products(0, 8 if tiny else 500))
    categories = [test_set.categories()[product.row] for product in products]
    found, rows = {}, []
    for where in (CPU, device):
        for bf16 in (False, True):
            model = CondViTModel.from_pretrained(MINI, dtype=torch.float32)  # with CLIP's own convolution
            encoder = Encoder(model, "category", bf16, where)
            pixels = [encoder.pixels(product.query_image) for product in products]
            embeds = found[str(where), bf16] = encoder.embed(pixels, categories)
            off = relative(embeds, found[str(CPU), False])
            cosine = (embeds * found[str(CPU), False]).sum(1).min().item()
            fine = off <= (HALF if bf16 else EXACT)[0]
            shown = [f"{off:.1e}", f"{cosine:.6f}", "yes" if fine else "NO"]
            rows.append([where, "bfloat16" if bf16 else "float32", *shown])
    return rows


def sharded_check(folder: Path) -> None:
    """In a process of its own, which is a process group of one: split weights give the whole model's step."""
    import torch.distributed as dist
    from accelerate import Accelerator

    from lrvsf.training.sharding import SplitWeights

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", world_size=1, rank=0)
    batch = next(iter(our_batches(folder / "train", 96, 8, 0, False)))
    whole = use_patch_product(CondViTModel.from_pretrained(MINI, dtype=torch.float32)).to(accelerator.device)
    split = copy.deepcopy(whole)
    loss, embeds, gradients = one_step(whole, batch)
    weights = SplitWeights(split, accelerator)
    parts = {"pixel_values": batch[0], "category_indices": batch[1], "target_pixel_values": batch[2]}
    mean, std = (255 * torch.tensor(v).view(3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
    for name in ("pixel_values", "target_pixel_values"):
        parts[name] = (parts[name] - mean) / std
    output = split(**{name: value.to(accelerator.device) for name, value in parts.items()})
    found = info_nce(output.image_embeds, output.target_embeds, weights.logit_scale())
    found.backward()
    weights.average_scale_gradient()
    theirs = {name: p.grad.full_tensor().cpu() for name, p in split.named_parameters() if p.grad is not None}
    errors = relative(output.image_embeds.detach().cpu(), embeds), gradient_error(theirs, gradients)
    print(json.dumps({"loss": abs(found.item() - loss), "embeds": errors[0], "gradients": errors[1]}))
    dist.destroy_process_group()


def sharded_row(folder: Path) -> list:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, __file__, "--sharded", str(folder)]
    done = subprocess.run(command, env={**os.environ, **alone}, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"the sharded step ended with {done.returncode}: {done.stderr[-1500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    fine = found["embeds"] <= EXACT[0] and found["gradients"] <= EXACT[1]
    shown = [f"{found[key]:.1e}" for key in ("loss", "embeds", "gradients")]
    return ["Mini CondViT, pairs", "--shard_weights, one process, against whole", *shown, "yes" if fine else "NO"]


def rank_checks(device: torch.device, tiny: bool) -> list[list]:
    """Ranks on the device against the CPU's: the same whole numbers, ties and near ties included."""
    random = torch.Generator().manual_seed(0)
    products, distractors, dim = (40, 500, 64) if tiny else (1000, 40_000, 512)

    def unit(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, generator=random), dim=-1)

    targets, items = unit(products, dim), unit(distractors, dim)
    queries = torch.nn.functional.normalize(targets + 0.3 * unit(products, dim), dim=1)
    items[:products] = targets  # ties
    near = torch.nextafter(targets, targets.new_tensor(2.0))  # as near as float32 can tell apart
    items[products : 2 * products] = near
    folds = torch.arange(products).repeat(4, 1)
    drawn = [torch.randint(0, distractors, (4, size), generator=random) for size in (distractors // 4, distractors)]
    found = {}
    for where in (CPU, device):
        for bf16 in (False, True):
            counter = RankCounter(queries.to(where), targets.to(where), folds, drawn, bf16=bf16)
            counter.add(items, 0)
            found[str(where), bf16] = counter.ranks()
    reference = found[str(CPU), False]
    rows = []
    for (where, bf16), ranks in found.items():
        same = all(
            torch.equal(mine.above, theirs.above) and torch.equal(mine.tied, theirs.tied)
            for mine, theirs in zip(ranks, reference, strict=True)
        )
        rows.append([where, "bfloat16 first" if bf16 else "float32", ranks[-1].tied_queries, "yes" if same else "NO"])
    return rows


def resume_checks(folder: Path, work: Path, tiny: bool) -> list[list]:
    """The same short training twice, and once more from its middle; where layers can be compiled, compiled too."""
    start = load_file("assets/mini-clip/model.safetensors")
    rows = []
    for compiled in (False,) if tiny else (False, True):
        first, others = three_runs(folder, work / str(compiled), compiled, *((4, 8) if tiny else (20, 64)))
        moved = sum((first[n].float() - start[n].float()).square().sum().item() for n in first if n in start) ** 0.5
        for name, weights in others.items():
            off = sum((weights[n].float() - first[n].float()).square().sum().item() for n in first) ** 0.5
            equal = all(torch.equal(weights[n], first[n]) for n in first)
            way = "layers compiled" if compiled else "plain"
            rows.append([f"{way}, {name}", "bit for bit" if equal else f"{off / moved:.1e} of the distance moved"])
    return rows


def three_runs(folder: Path, work: Path, compiled: bool, steps: int, batch: int) -> tuple[dict, dict[str, dict]]:
    """The weights of a training, and those of the same one run again and resumed from its middle."""
    import train_hf

    def train(name: str, *flags: str) -> dict[str, Tensor]:
        own = ["--max_steps", str(steps), "--save_strategy", "steps", "--save_steps", str(steps // 2)]
        own += ["--phase1_steps", "1", "--logging_steps", str(steps), "--per_device_train_batch_size", str(batch)]
        own += ["--data", str(folder), "--output_dir", str(work / name), "--attn_implementation", "sdpa"]
        own += ["--torch_compile", str(compiled), "--report_to", "none", *flags]
        train_hf.main(["recipes/mini-demo.yaml", *own])
        return load_file(work / name / "model.safetensors")

    first, again = train("first"), train("again")
    middle = f"checkpoint-{steps // 2}"
    (work / "resumed").mkdir()
    shutil.copytree(work / "first" / middle, work / "resumed" / middle)
    resumed = train("resumed", "--resume_from_checkpoint", "True")
    return first, {"the same run again": again, "resumed from its middle": resumed}


def tables(folder: Path, work: Path, device: torch.device, tiny: bool) -> Iterator[tuple[str, list[str], list[list]]]:
    """(heading, header, rows) of each check."""
    rows = [*step_checks(folder, device, tiny), sharded_row(folder)]
    header = ["model, batch", "way", "loss off by", "embeddings off by", "gradients off by", "within bounds"]
    yield "Against the tower in float64 on the CPU (relative errors)", header, rows
    header = ["device", "computed in", "off by", "least cosine", "within bounds"]
    yield "Embeddings as the evaluation makes them, against the CPU's", header, encoder_checks(folder, device, tiny)
    header = ["device", "product in", "queries with a tie", "the CPU's ranks"]
    yield "Ranks, with ties and near ties planted", header, rank_checks(device, tiny)
    header = ["training of Mini CLIP", "weights against the first run's"]
    yield "Runs that repeat", header, resume_checks(folder, work, tiny)


if __name__ == "__main__":
    sharded_check(Path(sys.argv[2]))
