"""SIGKILL at any step: what a resumed run trains on, and its losses, equal the uninterrupted run's bit for bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from lrvsf.data.mini.build import MiniSize, build_mini

SCRIPT = Path(__file__).parent / "logged_run.py"
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
STEPS = 7  # of 3 an epoch: two whole epochs and a step of the third


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """The flags of a small run: 13 products, 12 of which fill three global batches of 4."""
    folder = tmp_path_factory.mktemp("killed")
    build_mini(folder / "mini", MiniSize(products=13, test_products=1, distractors=1, image_size=32), processes=1)
    torch.manual_seed(0)
    vision = {**TOWER, "image_size": 16, "patch_size": 8}
    text = {**TOWER, "vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder / "clip")
    flags = {
        "model": folder / "clip", "data": folder / "mini", "max_steps": STEPS, "phase1_steps": 2, "use_cpu": True,
        "learning_rate": 1e-2, "logging_steps": 1, "save_steps": 1, "bf16": False, "disable_tqdm": True,
        "report_to": "none",
    }  # fmt: skip
    return [token for name, value in flags.items() for token in (f"--{name}", str(value))]


def run(folder, flags, *, processes, workers, kill_at=0):
    """Runs until the end or the kill; resumes where there is a checkpoint."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    flags = [*flags, "--output_dir", str(folder / "model"), "--dataloader_num_workers", str(workers)]
    flags += ["--per_device_train_batch_size", str(4 // processes)]
    if list(folder.glob("model/checkpoint-*")):
        flags += ["--resume_from_checkpoint", "True"]
    command = [*launcher, str(SCRIPT), str(folder / "log"), str(kill_at), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    _, errors = process.communicate(timeout=300)
    # Of several processes one dies, and the launcher ends the others.
    expected = 0 if not kill_at else -signal.SIGKILL if processes == 1 else 1
    assert process.returncode == expected, errors[-3000:]


def logged(folder, processes):
    """(step, ids) -> loss of each rank; a step that a killed run repeats must repeat itself exactly."""
    ranks = []
    for rank in range(processes):
        steps = {}
        for line in (folder / f"log.{rank}").read_text().splitlines():
            step, ids, loss = json.loads(line)
            assert steps.setdefault(step, (ids, loss)) == (ids, loss)
        assert sorted(steps) == list(range(1, STEPS + 1))
        ranks.append(steps)
    return ranks


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_and_resumed_run_is_the_uninterrupted_one(flags, tmp_path, processes):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    run(whole, flags, processes=processes, workers=0)
    # In the first epoch, right after its end, in the second: with and without loading workers.
    for kill_at, workers in ((2, 0), (4, 2), (6, 0), (0, 2)):
        run(killed, flags, processes=processes, workers=workers, kill_at=kill_at)
    expected = logged(whole, processes)
    assert logged(killed, processes) == expected
    epochs = [
        [name for rank in expected for step in steps for name in rank[step][0]] for steps in ((1, 2, 3), (4, 5, 6))
    ]
    assert all(len(epoch) == len(set(epoch)) == 12 for epoch in epochs), "a product is there once an epoch"
    weights = [(folder / "model/model.safetensors").read_bytes() for folder in (whole, killed)]
    assert weights[0] == weights[1]
