import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from made import product, spoil_page, write_shards
from waiting import is_alive, wait_for

from lrvsf.data import stream
from lrvsf.data.images import Tolerance
from lrvsf.data.pairs import PairMaker
from lrvsf.data.products import ProductShards
from lrvsf.data.stream import SPARES, PairLoader, ProductBatches, check_shared_memory, explained_stall


def ids(batches):
    return [[row["product_id"] for row in rows] for _, rows, _ in batches]


@pytest.fixture
def folder(tmp_path):
    return write_shards(tmp_path / "train", [product(f"p{i:02d}") for i in range(26)])


def test_every_product_once_an_epoch_in_an_order_of_seed_and_epoch(folder):
    shards = ProductShards.scan(folder)
    batches = ProductBatches(shards, 4, seed=3)
    first, again = ids(batches), ids(batches)
    flat = [name for batch in first for name in batch]
    assert first == again and len(batches) == len(first) == 6 and len(set(flat)) == 24
    batches.set_epoch(1)
    assert ids(batches) != first
    assert ids(ProductBatches(shards, 4, seed=4)) != first


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("files", [1, 2, 3, 5])
def test_ranks_share_each_global_batch_of_the_single_process(tmp_path, world, files):
    """With shards fewer than, equal to and more than processes."""
    shards = ProductShards.scan(write_shards(tmp_path / "t", [product(f"p{i:02d}") for i in range(26)], files))
    together = ids(ProductBatches(shards, 6, seed=0))
    assert len(together) == 4 and len({name for batch in together for name in batch}) == 24
    parts = [ids(ProductBatches(shards, 6 // world, seed=0, rank=rank, world_size=world)) for rank in range(world)]
    assert [sum(slices, []) for slices in zip(*parts, strict=True)] == together


def test_spares_are_not_in_the_global_batch(folder):
    shards = ProductShards.scan(folder)
    for rank in range(2):
        mine = list(ProductBatches(shards, 4, seed=0, rank=rank, world_size=2))
        whole = ids(ProductBatches(shards, 8, seed=0))
        for (_, _, spares), batch in zip(mine, whole, strict=True):
            assert spares and not {row["product_id"] for row in spares} & set(batch)


@pytest.mark.parametrize(("max_bad", "counts"), [(0, [8, 8, 8]), (0.01, [8, 9, 9]), (0.5, [8, 16, 10])])
def test_more_bad_images_are_tolerated_by_more_spares(folder, max_bad, counts):
    """26 products are three batches of 8 and two left over: a batch has those before it and after it as spares."""
    batches = list(ProductBatches(ProductShards.scan(folder), 8, seed=0, tolerance=Tolerance(max_bad)))
    assert [len(spares) for _, _, spares in batches] == counts
    for _, rows, spares in batches:
        assert len({row["product_id"] for row in (*rows, *spares)}) == 8 + len(spares)


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than the cores
def test_batches_do_not_depend_on_workers(folder, workers):
    maker = PairMaker(16, ["Bags"], seed=0)
    loader = PairLoader(ProductBatches(ProductShards.scan(folder), 4, seed=0), maker, workers)
    naive = [maker.batch(*item) for item in ProductBatches(ProductShards.scan(folder), 4, seed=0)]
    got = list(loader)
    assert len(got) == len(naive) == len(loader)
    for batch, expected in zip(got, naive, strict=True):
        assert batch["pixel_values"].shape == (4, 3, 16, 16) and batch["pixel_values"].dtype == torch.uint8
        assert batch["product_ids"] == expected["product_ids"]
        assert all(torch.equal(batch[key], expected[key]) for key in ("pixel_values", "target_pixel_values"))


def of_four_categories(count):
    return [product(f"p{i:03d}", category=("Bags", "Head", "Neck", "Bags", "Feet")[i % 5]) for i in range(count)]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_batches_of_few_categories(tmp_path, parts):
    shards = ProductShards.scan(write_shards(tmp_path / "t", of_four_categories(118)))
    batches = ProductBatches(shards, 8, seed=0, categories_per_batch=parts)
    category = {row["product_id"]: row["images"][0]["category"] for row in of_four_categories(118)}
    epoch = ids(batches)
    assert len(epoch) == len(batches)
    for batch in epoch:
        groups = [{category[name] for name in batch[i : i + 8 // parts]} for i in range(0, 8, 8 // parts)]
        assert len(batch) == 8 and all(len(group) == 1 for group in groups)
    flat = [name for batch in epoch for name in batch]
    assert len(set(flat)) == len(flat) > 118 - 4 * (8 // parts) - 8, "only the last of each category are left out"
    assert epoch == ids(batches) and epoch != ids(ProductBatches(shards, 8, seed=1, categories_per_batch=parts))
    ranks = [ids(ProductBatches(shards, 4, seed=0, rank=r, world_size=2, categories_per_batch=parts)) for r in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == epoch


def test_too_few_products_are_refused(folder):
    with pytest.raises(ValueError, match="26 usable products do not fill one global batch of 2 x 16; take a smaller"):
        ProductBatches(ProductShards.scan(folder), 16, seed=0, world_size=2)


def test_impossible_categories_per_batch_are_refused(folder):
    shards = ProductShards.scan(folder)
    for parts in (0, 3, 16):
        with pytest.raises(ValueError, match=f"categories_per_batch={parts} must divide the global batch of 2 x 4"):
            ProductBatches(shards, 4, seed=0, world_size=2, categories_per_batch=parts)
    few = ProductShards.scan(write_shards(folder.parent / "few", of_four_categories(12)))
    with pytest.raises(ValueError, match="12 usable products do not fill one global batch of 1 x 8 from 1 cat"):
        ProductBatches(few, 8, seed=0, categories_per_batch=1)


@pytest.mark.parametrize("files", [1, 2, 5])
@pytest.mark.parametrize("parts", [None, 2])
def test_a_resumed_epoch_is_the_rest_of_the_whole_one_and_reads_only_that(tmp_path, monkeypatch, files, parts):
    monkeypatch.setattr(stream, "WINDOW", 8)
    shards = ProductShards.scan(write_shards(tmp_path / "t", of_four_categories(64), files))
    read, whole_read = [], shards.read
    shards.read = lambda unit: read.append(unit) or whole_read(unit)
    batches = ProductBatches(shards, 4, seed=5, rank=1, world_size=2, categories_per_batch=parts)
    for epoch in (0, 2):
        batches.set_epoch(epoch)
        read.clear()
        whole = list(batches)
        assert len(read) == len(set(read)) <= len(shards.row_groups), "each row group is read once an epoch"
        counts = [len(read)]
        for start in (1, 4, len(whole) - 1):
            read.clear()
            batches.unread = start
            assert list(batches) == [None] * start + whole[start:]
            counts.append(len(read))
        assert counts == sorted(counts, reverse=True) and counts[-1] < counts[0], "what came before is not read"
        assert list(batches) == whole, "the next epoch starts at its beginning"


def test_what_is_read_and_held_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "WINDOW", 16)
    shards = ProductShards.scan(write_shards(tmp_path / "t", [product(f"p{i:03d}") for i in range(200)], 5))
    batches = ProductBatches(shards, 4, seed=0)
    reads, held = [], []
    whole_read = shards.read
    shards.read = lambda unit: reads.append(unit) or whole_read(unit)
    for step, _ in enumerate(batches):
        held.append(4 * len(reads) - 4 * (step + 1))
    assert len(reads) == len(shards.row_groups) == 50
    assert max(held) <= 16 + 4 + 4 * 5, "a window, the batch for spares, units ahead"


@pytest.mark.survives("a damaged page of a shard", "costs the products of its row group")
def test_a_damaged_row_group_costs_its_products_only(tmp_path, caplog):
    folder = write_shards(tmp_path / "t", [product(f"p{i:02d}") for i in range(40)], 2)
    shards = ProductShards.scan(folder)
    spoil_page(folder / "1.parquet", 2, "images.list.element.image.bytes")
    maker = PairMaker(16, ["Bags"], 0)
    batches = ProductBatches(shards, 4, seed=0)
    made = [maker.batch(*batch) for batch in batches]
    assert len(made) == len(batches) == 10 and all(len(batch["product_ids"]) == 4 for batch in made)
    lost = {name for batch in made for name, reason in batch["tried"] if reason == "lost in a damaged shard"}
    assert len(lost) == 4 and all("1.parquet, part 2" in name for name in lost)
    assert "Lost 4 products" in caplog.text
    names = {name for batch in made for name in batch["product_ids"]}
    assert names == {f"p{i:02d}" for i in range(40)} - {"p17", "p19", "p21", "p23"}
    assert all(len(spares) <= SPARES + 4 for _, _, spares in batches)


def test_a_lone_batch_takes_its_spares_from_what_the_epoch_leaves_out(tmp_path):
    rows = [product(f"p{i}", scene=b"broken" if i == 4 else "red") for i in range(10)]
    shards = ProductShards.scan(write_shards(tmp_path / "t", rows, 1))
    maker = PairMaker(16, None, 0)
    for epoch in range(5):
        batches = ProductBatches(shards, 8, seed=0)
        batches.set_epoch(epoch)
        ((_, batch, spares),) = batches
        assert len(spares) == 2
        made = maker.batch(epoch, batch, spares)["product_ids"]
        assert len(set(made)) == 8 and "p4" not in made


@pytest.mark.survives("a /dev/shm smaller than a batch, as containers have it", "batches do not go through it")
@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="where memory is shared otherwise")
def test_batches_of_loading_processes_are_not_in_dev_shm(folder):
    shards = ProductShards.scan(folder)
    alone = list(PairLoader(ProductBatches(shards, 4, seed=0), PairMaker(16, ["Bags"], 0)))
    loader = PairLoader(ProductBatches(shards, 4, seed=0), PairMaker(16, ["Bags"], 0), num_workers=1)
    for batch, expected in zip(loader, alone, strict=True):
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        areas = [(*(int(end, 16) for end in words[0].split("-")), words[-2:]) for words in maps]
        for name, tensor in batch.items():
            if isinstance(tensor, torch.Tensor):
                assert tensor.equal(expected[name]) and tensor.dtype == expected[name].dtype
                (file,) = [file for start, end, file in areas if start <= tensor.data_ptr() < end]
                assert file == ["/memfd:batch", "(deleted)"]


@pytest.mark.survives("SIGKILL on a training process", "its loading processes end with it, busy or not")
def test_a_loading_process_ends_with_its_trainer(folder, tmp_path, monkeypatch):
    """One that is busy: torch's own look whether its parent lives is between two batches."""
    monkeypatch.setattr(PairMaker, "batch", lambda *_: (tmp_path / str(os.getpid())).touch() or time.sleep(100))
    monkeypatch.setattr(stream, "TRAINER_SEEN_EVERY", 0.1)
    loader = PairLoader(ProductBatches(ProductShards.scan(folder), 4, seed=0), PairMaker(16, None, 0), num_workers=2)
    if not (trainer := os.fork()):
        try:
            next(iter(loader))
        finally:
            os._exit(1)
    workers = wait_for(
        lambda: len(found := [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]) == 2 and found
    )
    os.kill(trainer, signal.SIGKILL)
    os.waitpid(trainer, 0)
    assert wait_for(lambda: not any(is_alive(worker) for worker in workers))


@pytest.mark.parametrize("error", [RuntimeError("unable to allocate shared memory(shm)"), OSError("Read-only")])
def test_no_shared_memory_at_all_is_refused(monkeypatch, error):
    check_shared_memory()

    def fails(_):
        raise error

    monkeypatch.setattr(torch.Tensor, "share_memory_", fails)
    with pytest.raises(
        OSError, match=rf"/dev/shm takes no 32 .*\({re.escape(str(error))}\). Make it larger, with `docker"
    ):
        check_shared_memory()


def test_a_stall_is_explained(folder, monkeypatch):
    monkeypatch.setattr(PairMaker, "batch", lambda *_: time.sleep(2))
    monkeypatch.setattr(stream, "BATCH_WITHIN", -3)  # and four seconds more for four pairs
    loader = PairLoader(ProductBatches(ProductShards.scan(folder), 4, seed=0), PairMaker(16, None, 0), num_workers=1)
    with (
        pytest.raises(RuntimeError, match="no loading process gave a batch in time .*after 1 seconds"),
        explained_stall(),
    ):
        next(iter(loader))
