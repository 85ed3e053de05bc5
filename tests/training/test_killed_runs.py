"""train_hf.py as processes: what they train on together, and what faults at any step leave behind.

It is whole, and resumed it is the run that nothing disturbed: the same products, losses and weights, bit for bit.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from forks import forks_of
from made import as_flags, rows_of, tiny_clip, write_products

from lrvsf.data.products import ProductShards
from lrvsf.data.stream import ProductBatches
from lrvsf.mini.build import MiniSize, build_mini
from lrvsf.training import checkpoints

SCRIPT = Path(__file__).parent / "trainings.py"
STEPS = 7  # of 3 an epoch: two whole epochs and a step of the third
SEVERAL = pytest.mark.parametrize("processes", [1, 2])


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """The flags of a small run: 13 products, 12 of which fill three global batches of 4."""
    folder = tmp_path_factory.mktemp("killed")
    build_mini(folder / "mini", MiniSize(products=13, test_products=1, distractors=1, image_size=32), processes=1)
    tiny_clip(8, {"num_hidden_layers": 1, "image_size": 16}).save_pretrained(folder / "clip")
    return as_flags(
        model=folder / "clip", data=folder / "mini", max_steps=STEPS, phase1_steps=2, use_cpu=True,
        learning_rate=1e-2, logging_steps=1, save_steps=1, bf16=False, disable_tqdm=True, report_to="none",
        resume_from_checkpoint="auto",
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(run, flags, tmp_path_factory):
    """uninterrupted(processes): the folder of a run that nothing disturbed."""
    folders = {}

    def run_once(processes):
        if processes not in folders:
            folders[processes] = tmp_path_factory.mktemp("whole")
            run(folders[processes], flags, processes=processes)
        return folders[processes]

    return run_once


@pytest.fixture(scope="module")
def trainings():
    """The process that trainings are forks of."""
    with forks_of(SCRIPT) as ask:
        yield ask


@pytest.fixture(scope="module")
def run(trainings):
    """run(folder, flags, ...) trains until the end or the fault, which must give this exit status; resumes where it
    can. Gives what it said."""

    def run(folder, flags, *, processes=1, workers=0, fault="none", at=0, status=0, global_batch=4):
        flags = with_sizes(folder, flags, processes, workers, global_batch)
        statuses, said = trainings(folder / "log", processes, fault, at, flags)
        assert status in statuses and (status or not any(statuses)), said[-9000:]
        return said

    return run


def launch(folder, flags, *, processes, workers, fault, at):
    """`run` by torchrun: its exit status, and what was said."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    flags = with_sizes(folder, flags, processes, workers, global_batch=4)
    command = [*launcher, str(SCRIPT), str(folder / "log"), fault, str(at), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        _, said = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, said


def with_sizes(folder, flags, processes, workers, global_batch):
    flags = [*flags, "--output_dir", str(folder / "model"), "--dataloader_num_workers", str(workers)]
    return [*flags, "--per_device_train_batch_size", str(global_batch // processes)]


def logged(folder, processes):
    """(step, ids) -> loss of each rank; a step that a killed run repeats must repeat itself exactly."""
    ranks = []
    for rank in range(processes):
        steps = {}
        for line in (folder / f"log.{rank}").read_text().splitlines():
            step, ids, loss = json.loads(line)
            if loss != loss:  # poisoned, and never taken
                continue
            assert steps.setdefault(step, (ids, loss)) == (ids, loss)
        assert sorted(steps) == list(range(1, STEPS + 1))
        ranks.append(steps)
    return ranks


def assert_same_run(folder, whole, processes):
    assert logged(folder, processes) == logged(whole, processes)
    weights = [(path / "model/model.safetensors").read_bytes() for path in (folder, whole)]
    assert weights[0] == weights[1]


@pytest.mark.survives("SIGKILL at a step, in the first epoch, at its end, in the second", "resumes bit for bit")
@SEVERAL
def test_a_killed_and_resumed_run_is_the_uninterrupted_one(run, flags, uninterrupted, tmp_path, processes):
    # In the first epoch, right after its end, in the second: with and without loading workers.
    for at, workers in ((2, 0), (4, 2), (6, 0)):
        run(tmp_path, flags, processes=processes, workers=workers, fault="kill", at=at, status=-signal.SIGKILL)
    run(tmp_path, flags, processes=processes, workers=2)
    whole = uninterrupted(processes)
    assert_same_run(tmp_path, whole, processes)
    expected = logged(whole, processes)
    epochs = [
        [name for rank in expected for step in steps for name in rank[step][0]] for steps in ((1, 2, 3), (4, 5, 6))
    ]
    assert all(len(epoch) == len(set(epoch)) == 12 for epoch in epochs), "a product is there once an epoch"


@pytest.mark.survives("SIGKILL in a run whose gallery is frozen", "resumes bit for bit")
def test_a_killed_run_against_a_frozen_gallery(run, flags, uninterrupted, tmp_path):
    """On two processes; their mean loss is that of one, as each has all targets."""
    flags = [*flags, "--model", str(uninterrupted(1) / "model"), "--freeze_gallery", "True"]
    for name in ("one", "whole", "killed"):
        (tmp_path / name).mkdir()
    for name, processes in (("one", 1), ("whole", 2)):
        run(tmp_path / name, flags, processes=processes)
    run(tmp_path / "killed", flags, processes=2, fault="kill", at=4, status=-signal.SIGKILL)
    run(tmp_path / "killed", flags, processes=2)
    assert_same_run(tmp_path / "killed", tmp_path / "whole", 2)
    (alone,), (first, second) = logged(tmp_path / "one", 1), logged(tmp_path / "whole", 2)
    for step, (ids, loss) in alone.items():
        assert first[step][0] + second[step][0] == ids
        assert (first[step][1] + second[step][1]) / 2 == pytest.approx(loss, rel=1e-3)


@pytest.mark.survives("a run of one process killed, resumed with two", "the same products in the same global batches")
def test_resumed_with_another_number_of_processes(run, flags, uninterrupted, tmp_path):
    run(tmp_path, flags, fault="kill", at=4, status=-signal.SIGKILL)
    run(tmp_path, flags, processes=2)
    (whole,) = logged(uninterrupted(1), 1)
    halves = [[json.loads(line) for line in (tmp_path / f"log.{rank}").read_text().splitlines()] for rank in range(2)]
    resumed = [step for step in zip(*(half[-4:] for half in halves), strict=True)]  # rank 0's file has steps 1 to 3 too
    for (step, first, loss), (_, second, other) in resumed:
        ids, expected = whole[step]
        assert first + second == ids and (loss + other) / 2 == pytest.approx(expected, rel=1e-3)


@pytest.mark.survives(
    "SIGKILL while a checkpoint is saved: model, optimizer, random state, trainer's state, manifest, rename",
    "resumes bit for bit from the one before",
)
def test_killed_during_a_save(run, flags, uninterrupted, tmp_path):
    files = ("model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", checkpoints.MANIFEST, "rename")
    for at, fault in enumerate(files, start=2):
        run(tmp_path, flags, fault=fault, at=at, status=-signal.SIGKILL)
        newest = checkpoints.newest_whole(tmp_path / "model")
        assert newest.name == checkpoints.name_of(at - 1), f"killed while {fault} was written"
    run(tmp_path, flags)
    assert_same_run(tmp_path, uninterrupted(1), 1)
    assert not (tmp_path / "model" / checkpoints.STAGING).exists()


@pytest.mark.survives(
    "SIGTERM to the process group, to the launcher of several, or to one of these",
    "saves a checkpoint, exits with status 143, resumes bit for bit",
)
@pytest.mark.parametrize("processes, workers, fault", [(1, 2, "group"), (2, 2, "launcher"), (2, 0, "terminate")])
def test_sigterm_saves_and_ends(run, flags, uninterrupted, tmp_path, processes, workers, fault):
    without_saving = [*flags, "--save_strategy", "no"]
    how = {"processes": processes, "workers": workers, "fault": fault, "at": 5}
    if fault == "launcher":
        assert launch(tmp_path, without_saving, **how)[0] == 1
    else:
        run(tmp_path, without_saving, **how, status=143)
    (saved,) = checkpoints.checkpoints_in(tmp_path / "model")
    assert saved.name == "checkpoint-5"
    run(tmp_path, flags, processes=processes)
    assert_same_run(tmp_path, uninterrupted(processes), processes)


@pytest.mark.survives(
    "Ctrl-C at any moment, an epoch's end included", "saves a checkpoint, exits with status 130, resumes bit for bit"
)
@pytest.mark.parametrize(
    "processes, workers, fault, at", [(1, 2, "ctrl-c", 5), (1, 1, "epoch's end", 3), (2, 0, "ctrl-c", 2)]
)
def test_ctrl_c_saves_and_ends(run, flags, uninterrupted, tmp_path, processes, workers, fault, at):
    without_saving = [*flags, "--save_strategy", "no"]
    said = run(tmp_path, without_saving, processes=processes, workers=workers, fault=fault, at=at, status=130)
    (saved,) = checkpoints.checkpoints_in(tmp_path / "model")
    assert saved.name in (f"checkpoint-{at}", f"checkpoint-{at + 1}")
    assert said.count("Ctrl-C: the run ends after this step") == 1 and "Traceback" not in said
    assert f"Ended by Ctrl-C after step {saved.name[11:]}: {saved} is whole" in said
    run(tmp_path, flags, processes=processes)
    assert_same_run(tmp_path, uninterrupted(processes), processes)


@pytest.mark.survives("a run that hangs, and a second Ctrl-C or SIGTERM", "ends at once, whatever it waits for")
def test_a_second_signal_ends_a_run_that_hangs(run, flags, tmp_path):
    said = run(tmp_path, flags, workers=1, fault="deaf", at=2, status=130)
    assert "Ended at once by a second Ctrl-C." in said


@pytest.mark.survives("a run that hangs, and one SIGTERM", "ends after two minutes without an answer")
def test_a_signal_that_is_not_answered_ends_the_run(run, flags, tmp_path):
    said = run(tmp_path, flags, workers=1, fault="unanswered", at=2, status=143)
    assert "SIGTERM was not answered within 0.5 seconds" in said


@pytest.mark.parametrize("sharded", [False, True])
def test_chunks_on_two_processes_give_the_losses_of_whole_batches(run, flags, uninterrupted, tmp_path, sharded):
    with_layers = ["--shard_weights", str(sharded), "--gradient_checkpointing", str(sharded)]
    run(tmp_path, [*flags, "--grad_cache_chunk", "1", *with_layers], processes=2)
    for rank, whole in zip(logged(tmp_path, 2), logged(uninterrupted(2), 2), strict=True):
        for step, (ids, loss) in whole.items():
            assert rank[step][0] == ids and rank[step][1] == pytest.approx(loss, rel=1e-4)


@pytest.mark.survives(
    "SIGKILL with weights split over the processes or whole", "resumes the other way, bit for bit (two processes)"
)
def test_split_weights_train_the_same_and_are_saved_whole(run, flags, uninterrupted, tmp_path):
    """Two terms have one sum in any order: two processes give the same bits. The optimizer knows half of the weights
    when phase 1 is interrupted."""
    sharded = [*flags, "--shard_weights", "True", "--eval_strategy", "steps", "--eval_steps", "2"]
    run(tmp_path, flags, processes=2, fault="kill", at=2, status=-signal.SIGKILL)
    run(tmp_path, sharded, processes=2, fault="kill", at=5, status=-signal.SIGKILL)
    run(tmp_path, flags, processes=2)
    assert_same_run(tmp_path, uninterrupted(2), 2)


def test_split_weights_have_the_same_rates_in_each_layer(run, flags, uninterrupted, tmp_path):
    flags = [*flags, "--layer_decay", "0.5"]
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    run(tmp_path / "whole", flags, processes=2)
    run(
        tmp_path / "killed",
        [*flags, "--shard_weights", "True"],
        processes=2,
        fault="kill",
        at=5,
        status=-signal.SIGKILL,
    )
    run(tmp_path / "killed", flags, processes=2)
    assert_same_run(tmp_path / "killed", tmp_path / "whole", 2)
    assert logged(tmp_path / "whole", 2) != logged(uninterrupted(2), 2)


@pytest.mark.survives("one of several processes raises", "all end, its traceback comes first")
def test_a_rank_that_raises_ends_all(flags, tmp_path):
    status, said = launch(tmp_path, flags, processes=2, workers=0, fault="raise", at=3)
    assert status == 1
    first = said[said.index("Traceback (most recent call last)") :]
    assert "ValueError: made to fail" in first[: first.index("Error:") + 100], said[-3000:]


@pytest.mark.survives(
    "a loss that is not a number, on one of several processes", "all end; step and products are named"
)
def test_a_loss_that_is_no_number_ends_all(run, flags, uninterrupted, tmp_path):
    said = run(tmp_path, flags, processes=2, fault="nan", at=5, status=1)
    ids = ", ".join(logged(uninterrupted(2), 2)[1][5][0])
    assert "step 5: the loss is nan on process 1" in said and ids in said, said[-3000:]
    run(tmp_path, flags, processes=2)
    assert_same_run(tmp_path, uninterrupted(2), 2)


@pytest.mark.survives("a data-loading process dies", "the run ends and names it")
def test_a_dead_worker_is_an_error(run, flags, tmp_path):
    said = run(tmp_path, flags, workers=2, fault="worker", at=2, status=1)
    assert "DataLoader worker (pid" in said


def test_three_processes_share_what_one_trains_on(run, flags, tmp_path):
    """13 products in two shards, one product unreadable: two global batches of 6 an epoch, STEPS of them."""
    data = Path(flags[flags.index("--data") + 1])
    rows = rows_of(data / "train")
    rows[4]["images"] = [image | {"image": {"bytes": b"<html>", "path": None}} for image in rows[4]["images"]]
    for number in range(2):
        write_products(tmp_path / f"data/train/{number}.parquet", rows[number::2], row_group_size=3)
    flags = [*flags, "--data", str(tmp_path / "data"), "--max_bad_fraction", "0.5"]
    run(tmp_path, flags, processes=3, workers=1, global_batch=6)
    ranks = logged(tmp_path, 3)

    together = ProductBatches(ProductShards.scan(str(tmp_path / "data/train")), 6, seed=42)
    assert len(together) == 2
    for step in range(1, STEPS + 1):
        epoch, place = divmod(step - 1, len(together))
        together.set_epoch(epoch)
        planned = [row["product_id"] for row in list(together)[place][1]]
        trained = [name for rank in ranks for name in rank[step][0]]
        assert len(set(trained)) == 6 and rows[4]["product_id"] not in trained
        replaced = [(new, old) for new, old in zip(trained, planned, strict=True) if new != old]
        assert all(old == rows[4]["product_id"] for _, old in replaced), "order and place are those of one process"
