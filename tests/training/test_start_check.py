"""Two processes that do not fit together end with one sentence, before the model is loaded.

As a script it is one process of a launch, see forks.py: it tries to train with each of the flags, and a stand-in for
the training itself.
"""

import json
import logging
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from forks import forks_of, serve
from made import as_flags, product, tiny_clip, write_shards

import train_hf
from configuration_condvit import CondViTConfig
from lrvsf.training.launch import process_facts, start_check
from lrvsf.training.launch.agreement import differing, places
from lrvsf.training.source import training_folder, training_products


def stand_in(args, training, rate):
    """What comes after the check and before the model: the scan of the shards."""
    assert rate > 0
    training_products(training_folder(args.data), training, CondViTConfig(condition="none"))


def try_each(log, rank, launches):
    """Writes a line for each launch: how it ended, and after how many seconds."""
    socket.gethostname = lambda: f"node{rank}"
    start_check.LATE, start_check.SILENCE, train_hf.train = 0.2, 0.2, stand_in
    digest = process_facts.code_digest()
    with open(f"{log}.{rank}", "w") as file:
        for code, late, *flags in launches:
            process_facts.code_digest = lambda code=code: code[rank] or digest
            time.sleep(late[rank])
            begin = time.monotonic()
            try:
                train_hf.main(flags[rank])
                told = "ended well"
            except ValueError as error:
                told = str(error)
            file.write(json.dumps([told, time.monotonic() - begin]) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    for name, ids in (("data", "abc"), ("other rows", "xyz"), ("fewer", "ab")):
        write_shards(folder / name / "train", [product(one) for one in ids], 1)
    tiny_clip().save_pretrained(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def launch(folder):
    """launch(**of_the_second): a launch whose second process has these flags of its own."""

    def make(code=(None, None), late=(0, 0), **of_the_second):
        flags = {
            "model": folder / "clip", "data": folder / "data", "output_dir": folder / "run", "max_steps": 1,
            "use_cpu": True, "bf16": False, "report_to": "none",
        }  # fmt: skip
        return [code, late, as_flags(**flags), as_flags(**{**flags, **of_the_second})]

    return make


@pytest.mark.survives(
    "one of several machines lacks the data, or has other data, code, flags or another output folder",
    "all end before the model is loaded, with one sentence that names it",
)
def test_processes_that_do_not_fit_together_end_with_one_sentence(folder, launch, tmp_path):
    launches = {
        "unseen": launch(data=folder / "nowhere"),
        "fewer": launch(data=folder / "fewer"),
        "rows": launch(data=folder / "other rows"),
        "code": launch(code=(None, "0123456789ab")),
        "several": launch(code=(None, "0123456789ab"), seed=7),
        "machine": launch(bf16=True),
        "output": launch(output_dir=folder / "elsewhere"),
        "good": launch(late=(0, 0.5)),  # last: it ends the process group
    }
    with forks_of(Path(__file__)) as ask:
        statuses, said = ask(tmp_path / "log", 2, list(launches.values()))
    assert statuses == [0, 0], said
    first, second = (
        [json.loads(line) for line in (tmp_path / f"log.{rank}").read_text().splitlines()] for rank in "01"
    )
    assert [told for told, _ in first] == [told for told, _ in second]
    assert max(seconds for _, seconds in first) < 30, "no process waits for one that has gone"
    told = dict(zip(launches, (told for told, _ in first), strict=True))

    data = folder / "nowhere"
    assert told["unseen"].startswith(f"on node1: {data} has no train/ folder")
    assert told["unseen"].endswith(". On node0 nothing is wrong: all machines need the same folders")
    size = (folder / "data/train/0.parquet").stat().st_size
    assert told["fewer"].startswith(f"data differs: 1 file of {size:,} bytes (")
    assert told["fewer"].endswith(f"node1. {process_facts.SAME_FILES}.")
    assert size == (folder / "other rows/train/0.parquet").stat().st_size, "a listing does not tell them apart"
    assert "differs: 3 products (" in told["rows"] and "; 3 products (" in told["rows"]
    code = f"code differs: {process_facts.code_digest()} on node0; 0123456789ab on node1. Bring this repository to"
    assert told["code"].startswith(code) and "\n" not in told["code"]
    assert told["several"].startswith(code)
    assert told["several"].endswith(
        "\n--seed differs: 42 on node0; 7 on node1. Start all machines with the same command and the same recipe."
    )
    assert "--bf16 differs: False on node0; True on node1. The machines are not alike: say --bf16" in told["machine"]
    assert told["output"] == f"output_dir={folder / 'run'} " + (
        "is another folder on node1 than on node0, which saves checkpoints there. Name a folder that all machines share"
    )
    assert told["good"] == "ended well"
    assert "2 processes on 2 machines, all-reduce " in said and said.count("GB/s") == 3, "and before rows and output"
    assert "node0: no answer from the other processes for 0.2 seconds; see whether the machines reach" in said


def test_one_process_compares_nothing(folder):
    assert start_check.check_processes(None, None, None) is None
    start_check.check_shared(folder / "not there")


def test_many_places_are_told_briefly():
    hosts = [f"n{rank // 8}" for rank in range(64)]
    assert places(range(64), hosts) == "n0, n1, n2, n3, and 4 more"
    assert places([1, 2, 8, *range(16, 24)], hosts) == "n0 (processes 1, 2), n1 (process 8), n2"
    facts = [{"torch": f"2.{rank // 8}"} for rank in range(64)]
    (told,) = differing(facts, hosts, {"torch": "Install one"})
    assert told == "torch differs: 2.0 on n0; 2.1 on n1; 2.2 on n2; 2.3 on n3; and 4 more. Install one."
    assert differing([{"a": "1"}, {}], ["x", "x"], {"a": "Do"}) == [
        "a differs: 1 on x (process 0); nothing on x (process 1). Do."
    ]


def test_slow_exchanges_of_gradients_are_told_with_their_seconds(caplog):
    weights = [SimpleNamespace(numel=lambda: 2_000_000, requires_grad=trained) for trained in (True, True, False)]
    model = SimpleNamespace(parameters=lambda: weights)
    with caplog.at_level(logging.WARNING):
        for rate in (None, 100e6):
            start_check.warn_of_slow_gradients(rate, model)
        assert not caplog.messages
        start_check.warn_of_slow_gradients(5e6, model)
    assert "of 4 million weights, 0.02 GB, take about 3.2 seconds a step" in caplog.messages[0]


if __name__ == "__main__":
    serve(try_each)
