"""Stores whose writing was cut short, whose files are damaged, whose images or embeddings are bad."""

import errno
import json
import os
import shutil

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from stored import contents

from lrvsf.data.images import Tolerance, TooMuchDamage
from lrvsf.data.testset import ProductTestSet
from lrvsf.durable import InUse
from lrvsf.embedding import store as store_module
from lrvsf.embedding.encoder import Encoder


class Killed(BaseException):
    """Ends a run where nothing can be tidied up."""


@pytest.mark.parametrize("point", ["before", "half", "unnamed", "named"])
def test_killed_at_any_write(open_store, embedded, monkeypatch, point):
    whole = open_store("whole")
    whole.fill()
    everything, total = contents(whole), sum(embedded)
    embedded.clear()
    plain, left = store_module.write_whole, 0

    def dies(path, data):
        if point == "half":
            path.with_name(f"{path.name}.part").write_bytes(data[: len(data) // 2])
        elif point == "unnamed":
            path.with_name(f"{path.name}.part").write_bytes(data)
        elif point == "named":
            plain(path, data)
        raise Killed

    def dies_later(path, data):
        nonlocal left
        left -= 1
        (plain if left >= 0 else dies)(path, data)

    monkeypatch.setattr(store_module, "write_whole", dies_later)
    for files in range(len(everything)):  # each run goes on from the one before, and writes so many
        left = files
        try:
            open_store().fill()
        except Killed:
            continue
        break
    assert contents(open_store()) == everything
    assert total <= sum(embedded) < 2 * total, "each of the few deaths cost a shard, not the run"


@pytest.mark.survives("the disk is full while embeddings are stored", "the run ends; the next embeds what is missing")
def test_a_full_disk(open_store, embedded, monkeypatch):
    plain = store_module.write_whole

    def full(path, data):
        if path.name == "distractor-00003.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(path, data)

    monkeypatch.setattr(store_module, "write_whole", full)
    with pytest.raises(
        OSError, match="No space left on device: .*distractor-00003.* Make room or allow it, or give .*--embeds"
    ):
        open_store().fill()
    monkeypatch.setattr(store_module, "write_whole", plain)
    embedded.clear()
    store = open_store()
    store.fill()
    assert sum(embedded) == len(store.rows("distractors")[store.rows("distractors") >= 24])


def test_a_place_that_cannot_be_written(open_store, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file/embeds could not be written.*--embeds"):
        open_store("file/embeds").fill()
    open_store().fill()
    monkeypatch.setattr(store_module, "write_whole", None)  # one that is complete is only read
    open_store().fill()


def damage(path, how):
    tensors, bad = load_file(path), {"bad": "[]"}
    rows = tensors["row"]
    if how == "cut short":
        os.truncate(path, path.stat().st_size - 1)
    elif how == "no safetensors":
        path.write_bytes(b"<html>" * 100)
    elif how == "other rows":
        save_file({**tensors, "row": rows + 1}, path, bad)
    elif how == "a row twice":
        save_file({**tensors, "row": torch.cat([rows[:1], rows[:-1]])}, path, bad)
    elif how == "a row less":
        save_file({name: tensor[1:] for name, tensor in tensors.items()}, path, bad)
    elif how == "another order":
        save_file({**tensors, "row": rows.flip(0)}, path, bad)
    elif how == "another dimension":
        save_file({**tensors, "embeds": tensors["embeds"][:, :-1].contiguous()}, path, bad)
    elif how == "float32":
        save_file({**tensors, "embeds": tensors["embeds"].float()}, path, bad)
    else:
        assert how == "no word of bad rows"
        save_file(tensors, path)


@pytest.mark.survives("a file of stored embeddings cut short, or of other rows", "named, and made again to the byte")
@pytest.mark.parametrize(
    "how",
    [
        *("cut short", "no safetensors", "other rows", "a row twice", "a row less", "another order"),
        *("another dimension", "float32", "no word of bad rows"),
    ],
)
def test_a_damaged_shard_is_named_and_made_again(open_store, embedded, caplog, how):
    store = open_store()
    store.fill()
    everything = contents(store)
    embedded.clear()
    damage(store.folder / "distractor-00003.safetensors", how)
    again = open_store()
    again.fill()
    assert contents(again) == everything and sum(embedded) == 8
    assert "distractor-00003.safetensors" in caplog.text and "made again" in caplog.text


def test_files_of_one_shard_must_agree(open_store, caplog):
    store = open_store()
    store.fill()
    everything = contents(store)
    path = store.folder / "query-00001.safetensors"  # of rows 8 to 11
    save_file({name: rows[:-1] for name, rows in load_file(path).items()}, path, {"bad": json.dumps([[11, "empty"]])})
    open_store().fill()
    assert contents(store) == everything and "target-00001.safetensors has other rows than its query" in caplog.text


def test_embeddings_that_are_none_are_not_stored(open_store, make_model):
    model = make_model()
    with torch.no_grad():
        model.visual_projection.weight[0] = float("nan")
    store = open_store(encoder=Encoder(model, "category"))
    with pytest.raises(ValueError, match="Row 0 of the products: .*query embedding has length nan.*not stored"):
        store.fill()
    assert list(contents(store)) == [store_module.MANIFEST]


def test_embeddings_that_are_none_are_not_read(open_store):
    store = open_store()
    store.fill()
    for value, says in ((float("nan"), "is not finite"), (0.0, "has norm 0.0000")):
        path = store.folder / "distractor-00002.safetensors"
        tensors = load_file(path)
        tensors["embeds"][3] = value
        save_file(tensors, path, {"bad": json.dumps([[19, "empty"], [20, "empty"]])})
        with pytest.raises(ValueError, match=f"distractor-00002.*remove.*: row 3 {says}"):
            list(store.blocks("distractor"))


@pytest.mark.survives("an embedding run with bad images, interrupted", "the same counts by reason, the same limits")
def test_bad_images_are_counted_whoever_met_them(open_store, caplog):
    reasons = {"empty": 4, "not an image": 1}
    for kept in ((), (0, 2), (1, 2, 3), range(6)):
        store = open_store()
        store.fill()
        assert store.skipped("distractors") == reasons and store.skipped("products") == {"not an image": 1, "empty": 1}
        for number in set(range(6)).difference(kept):
            (store.folder / f"distractor-{number:05d}.safetensors").unlink()
    open_store().fill()
    caplog.clear()
    with pytest.raises(TooMuchDamage, match="5 of 41 distractors"):
        open_store(tolerance=Tolerance(0.12)).fill()
    assert not caplog.text


def test_a_series_of_bad_images_across_shards(open_store, make_test_set, tmp_path, embedded):
    """Rows 13 to 18, of which 16 begins a shard; met by one run, by two, or only found, before anything is embedded."""
    shutil.rmtree(tmp_path / "test")
    six = ProductTestSet(make_test_set(products=3, distractors=30, bad={"jpg": dict.fromkeys(range(13, 19), b"")}))
    open_store("six", data=six, tolerance=Tolerance(0.5, 7)).fill()
    for missing in ((), (1,), (2,), (1, 2), (3,)):
        for number in missing:
            (tmp_path / f"six/distractor-{number:05d}.safetensors").unlink()
        embedded.clear()
        with pytest.raises(TooMuchDamage, match="6 in a row, the last one row 18 of the distractors"):
            open_store("six", data=six, tolerance=Tolerance(0.5, 6)).fill()
        assert sum(embedded) == (5 if 1 in missing else 0)
        open_store("six", data=six, tolerance=Tolerance(0.5, 7)).fill()


def test_a_series_of_bad_images_across_processes(open_store, make_test_set, tmp_path, monkeypatch):
    """Rows 5 to 7, 8, and 16 to 18. This process embeds nothing; what is missing another one makes, or does not."""
    shutil.rmtree(tmp_path / "test")
    seven = ProductTestSet(make_test_set(2, 30, bad={"jpg": dict.fromkeys([5, 6, 7, 8, 16, 17, 18], b"")}))
    open_store("seven", data=seven, tolerance=Tolerance(0.5, 5)).fill()
    shard = tmp_path / "seven/distractor-00001.safetensors"
    theirs = shard.read_bytes()
    shard.unlink()
    monkeypatch.setattr(store_module, "own_share", lambda rows: (0, 0))
    # 5 to 7 and 16 to 18 are not taken for a series of six.
    with pytest.raises(FileNotFoundError, match="distractor-00001.* made by another process and is not here.*--embeds"):
        open_store("seven", data=seven, tolerance=Tolerance(0.5, 4)).fill()
    monkeypatch.setattr(PartialState, "wait_for_everyone", lambda self: shard.write_bytes(theirs))
    open_store("seven", data=seven, tolerance=Tolerance(0.5, 5)).fill()
    shard.unlink()
    with pytest.raises(TooMuchDamage, match="4 in a row, the last one row 8"):
        open_store("seven", data=seven, tolerance=Tolerance(0.5, 4)).fill()


@pytest.mark.survives("two runs that embed into one folder", "the second is refused; who only reads is not")
def test_one_run_at_a_time_embeds(open_store, locked_elsewhere):
    store = open_store()
    store.fill()
    with locked_elsewhere(store.folder):
        open_store().fill()  # complete
        store._path("distractor", 0).unlink()
        with pytest.raises(InUse, match="embeds is in use by a rehearsal"):
            open_store().fill()
        assert not store._path("distractor", 0).exists()
    open_store().fill()
    assert store._path("distractor", 0).exists()
