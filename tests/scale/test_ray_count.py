"""Ranks counted by processes of Ray: the results of one process to the last digit, also when one of them is killed."""

import os
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from made import as_flags
from safetensors.torch import save_file

pytest.importorskip("ray")

import evaluate_lrvsf
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding import store as store_module
from lrvsf.embedding.encoder import Encoder
from lrvsf.evaluation.bootstrap import BootstrapSettings, evaluate_bootstrap
from lrvsf.evaluation.embedded import EmbeddedTestSet, add_blocks
from lrvsf.evaluation.paper import evaluate_paper
from lrvsf.evaluation.precision import TopShares
from lrvsf.evaluation.queries import QueryTable
from lrvsf.evaluation.recall import RankCounter
from lrvsf.scale.cluster import Pool
from lrvsf.scale.ray_count import RayEvaluation, _runs

CPUS = 3  # of the cluster, whatever the machine has


@pytest.fixture
def one_thread():
    """As a process of one CPU has, for whose threads the last bits of an embedding may differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def flags(make_test_set, tiny_model, tmp_path, monkeypatch):
    """Two shards of products, one product of them bad, and five of distractors, two of them bad."""
    monkeypatch.setattr(store_module, "ROWS", 8)
    root = make_test_set(12, 40, bad={"COMPLEX_IMG": {9: b"<html>"}, "jpg": {3: b"", 31: b"no"}})
    tiny_model.save_pretrained(tmp_path / "model")
    return as_flags(model=tmp_path / "model", data_root=root, batch_size=3, bf16=False, max_bad_fraction=0.2)


def test_the_script_writes_what_one_process_writes(cluster, one_thread, flags, tmp_path, monkeypatch):
    """Embedded, queries by their views too, and counted by two processes; a path is relative to this one's folder."""
    monkeypatch.setattr(evaluate_lrvsf, "plot_all", lambda *given: None)  # it takes seconds
    monkeypatch.chdir(tmp_path)
    flags += as_flags(gallery_sizes=[10, 38], folds=3, seed=5, query_views="whole,flip")
    evaluate_lrvsf.main([*flags, "--output_dir", "one"])
    evaluate_lrvsf.main([*flags, "--output_dir", "two", "--engine", "ray", "--actors", "2"])
    embeds = sorted(path.relative_to("one") for path in Path("one/embeds").rglob("*") if path.is_file())
    written = ["results.json", "queries.parquet", *embeds]
    assert len(written) == 2 + 2 + 2 + 5 + 1 + 2 + 1
    for name in written:
        assert (Path("one") / name).read_bytes() == (Path("two") / name).read_bytes(), name


@pytest.mark.parametrize("actors", [1, 2, 3])
def test_results_equal_those_of_one_process(cluster, make_test_set, tiny_model, make_store, monkeypatch, actors):
    """Both published ways to measure, with galleries of one category and the shares of the first items."""
    monkeypatch.setattr(store_module, "ROWS", 8)
    store = make_store(Encoder(tiny_model, "category"), ProductTestSet(make_test_set(12, 40)), 8)
    draws = BootstrapSettings([10, 40], folds=3, restrict_to_category=True, allow_unmatched_categories=True)
    here, there = EmbeddedTestSet(store), EmbeddedTestSet(store, RayEvaluation(Pool(actors, 1, 0)))
    for evaluate in (partial(evaluate_bootstrap, settings=draws), partial(evaluate_paper, allow_unmatched=True)):
        ours, theirs = QueryTable(), QueryTable()
        assert evaluate(here, queries=ours) == evaluate(there, queries=theirs)
        assert ours.table() == theirs.table()


def counters():
    """What the paper's protocol counts with: 6 products among 50 distractors, of coordinates 0, 1/2 and -1/2, whose
    lengths are exactly 1, so that what is read of a file is what was written; many tie."""
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(62, 8, generator=generator).argsort(1)[:, :4]
    halves = torch.randint(0, 2, (62, 4), generator=generator) - 0.5
    queries, targets, distractors = torch.zeros(62, 8).scatter(1, places, halves).split([6, 6, 50])
    kinds, folds = torch.arange(6) % 2, torch.arange(6)[None]
    drawn = [torch.arange(size)[None] for size in (0, 20, 50)]
    arguments = queries, targets, folds, drawn
    made = RankCounter(*arguments), KilledOnce(*arguments, kinds), TopShares(queries, targets, kinds, *arguments[2:], 5)
    return made, distractors


class KilledOnce(RankCounter):
    """Kills its process at the second shard, where a file says so."""

    folder: Path | None = None

    def add(self, embeds, first_row, categories):
        if self.folder and first_row:
            with suppress(FileNotFoundError):  # of several processes one takes it
                (self.folder / "kill").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        super().add(embeds, first_row, categories)


@pytest.mark.survives(
    "a process of a cluster that dies while it counts ranks", "its run is counted anew; the same ranks"
)
@pytest.mark.parametrize("actors", [1, 2, 3])
def test_counts_of_runs_add_up(cluster, tmp_path, monkeypatch, actors):
    """Shards of all sizes, one of them empty; a process dies in the middle of one run, which is counted again."""
    naive, distractors = counters()
    kinds = torch.arange(50) % 3 - 1
    add_blocks([(distractors, 0)], naive, kinds)
    shards, first = [], 0
    for number, size in enumerate([1, 16, 0, 7, 3, 11, 2, 5, 5]):
        shards.append((tmp_path / f"distractor-{number:05d}.safetensors", first))
        save_file({"embeds": distractors[first : first + size].clone()}, shards[-1][0])
        first += size
    made, _ = counters()
    made[1].folder = tmp_path
    (tmp_path / "kill").touch()
    monkeypatch.chdir(tmp_path)
    relative = [(path.relative_to(tmp_path), first) for path, first in shards]
    RayEvaluation(Pool(actors, 1, 0)).count(relative, made, kinds)
    assert not (tmp_path / "kill").exists()
    for one, other in zip(naive[:2], made[:2], strict=True):
        for theirs, ours in zip(one.ranks(), other.ranks(), strict=True):
            assert torch.equal(theirs.above, ours.above) and torch.equal(theirs.tied, ours.tied)
    assert all(torch.equal(*shares) for shares in zip(naive[2].shares(), made[2].shares(), strict=True))
    assert sum(int(ranks.tied.sum()) for ranks in made[0].ranks()) > 0


def test_a_damaged_shard_is_named(cluster, tmp_path):
    made, distractors = counters()
    save_file({"embeds": 2 * distractors}, tmp_path / "distractor-00000.safetensors")
    with pytest.raises(RuntimeError, match=r"could not be counted: .*distractor-00000.* row 0 has norm 2"):
        RayEvaluation(Pool(1, 1, 0)).count([(tmp_path / "distractor-00000.safetensors", 0)], made, None)


def test_runs_have_all_shards_in_order():
    shards = [(Path(str(number)), number) for number in range(9)]
    for most in (1, 2, 4, 9, 20):
        runs = _runs(shards, most)
        assert [shard for run in runs for shard in run] == shards
        assert len(runs) == min(most, 9) and max(map(len, runs)) - min(map(len, runs)) <= 1


def test_within_a_launch_of_several_processes(flags, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--engine ray shares the work out by itself"):
        evaluate_lrvsf.main([*flags, "--engine", "ray", "--output_dir", str(tmp_path / "out")])
