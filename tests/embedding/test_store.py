"""The store: what it holds against plain embedding, what is missing made again to the byte, and what it refuses."""

import errno
import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lrvsf.data.images import BadImageCounter, Tolerance, TooManyBadImages
from lrvsf.data.testset import ProductTestSet
from lrvsf.durable import InUse
from lrvsf.embedding import store as store_module
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.fingerprint import fingerprint, weights_digest
from lrvsf.embedding.parts import Distractors, Products
from lrvsf.embedding.pipeline import embed_distractors, embed_products
from lrvsf.embedding.store import renormalised
from lrvsf.evaluation.bootstrap import BootstrapSettings, evaluate_bootstrap
from lrvsf.evaluation.embedded import EmbeddedTestSet, StoredTestSet
from lrvsf.evaluation.paper import evaluate_paper
from lrvsf.evaluation.precision import TopShares
from lrvsf.evaluation.recall import RankCounter

BAD = {"SIMPLE_IMG": {6: b""}, "COMPLEX_IMG": {1: b"<html>"}, "jpg": {0: b"", 8: b"no", 19: b"", 20: None, 33: b""}}


HALF = Tolerance(0.5)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(store_module, "ROWS", 8)  # the test set below: 2 shards of products, 6 of distractors


@pytest.fixture
def test_set(make_test_set):
    return ProductTestSet(make_test_set(products=12, distractors=41, bad=BAD))


@pytest.fixture
def open_store(test_set, tiny_model, tmp_path):
    """`open_store(folder="embeds", **choices)`: a store of the test set by the tiny model, as a new run opens it."""

    def make(folder="embeds", *, encoder=None, of=None, batch_size=3, tolerance=HALF):
        encoder = encoder or Encoder(tiny_model, "category")
        return StoredTestSet(tmp_path / folder, encoder, of or test_set, batch_size=batch_size, tolerance=tolerance)

    return make


@pytest.fixture
def embedded(monkeypatch):
    """The sizes of the batches that the model was given."""
    sizes, plain = [], Encoder.embed
    monkeypatch.setattr(Encoder, "embed", lambda *args: sizes.append(len(args[1])) or plain(*args))
    return sizes


def parts_of(test_set):
    return Products(test_set), Distractors(test_set)


def contents(store):
    return {path.name: path.read_bytes() for path in sorted(store.folder.iterdir())}


def test_it_holds_what_plain_embedding_gives(open_store, test_set, tiny_model):
    store, encoder = open_store(), Encoder(tiny_model, "category")
    store.fill()
    products = embed_products(encoder, test_set, 12, Tolerance(1))
    distractors = embed_distractors(encoder, test_set, 41, Tolerance(1))
    assert store.rows("products").tolist() == products.rows and store.rows("distractors").tolist() == distractors.rows
    assert store.skipped("products") == products.skipped and store.skipped("distractors") == distractors.skipped
    blocks = list(store.blocks("distractor"))
    assert [first for _, first in blocks] == [0, 7, 14, 20, 28, 35] and len(blocks[-1][0]) == 1
    given = store.whole("query"), store.whole("target"), torch.cat([embeds for embeds, _ in blocks])
    for embeds, plain in zip(given, (*products.embeds.values(), *distractors.embeds.values()), strict=True):
        torch.testing.assert_close(embeds, plain, rtol=2**-10, atol=1e-6)
        torch.testing.assert_close(embeds.norm(dim=1), torch.ones(len(embeds)), rtol=0, atol=2e-7)
    first = load_file(store.folder / "distractor-00000.safetensors")
    assert {name: (tensor.dtype, *tensor.shape) for name, tensor in first.items()} == {
        "embeds": (torch.float16, 7, 16), "row": (torch.int64, 7),
    }  # fmt: skip


def test_lengths_are_renormalised_exactly():
    rows = torch.nn.functional.normalize(torch.randn(300, 96, generator=torch.Generator().manual_seed(0)), dim=1).half()
    good = renormalised(rows)
    assert (good.double().norm(dim=1) - 1).abs().max() < 1e-7 < (rows.double().norm(dim=1) - 1).abs().max()
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    assert torch.equal(renormalised(rows[:, order]), good[:, order]), "no rounding hangs on the order of the sum"
    assert torch.equal(renormalised(rows[7:8]), good[7:8])


@pytest.mark.parametrize("seed", range(6))
def test_what_is_missing_is_made_again_to_the_byte(open_store, embedded, seed):
    """Any files removed, and half-written ones left behind; only the shards of the removed ones are embedded."""
    whole = open_store("whole")
    whole.fill()
    everything, total = contents(whole), sum(embedded)
    assert total == 2 * 10 + 36
    random = torch.Generator().manual_seed(seed)
    names = [name for name in everything if name != store_module.MANIFEST]
    removed = [name for name in names if torch.rand((), generator=random) < (seed + 1) / 7]
    shutil.copytree(whole.folder, whole.folder.with_name("embeds"))
    for name in removed:
        (whole.folder.with_name("embeds") / name).rename(whole.folder.with_name("embeds") / f"{name}.part")
    embedded.clear()
    store = open_store()
    store.fill()
    assert contents(store) == everything
    shards = {name.replace("query", "target") for name in removed}
    counts = {name: len(load_file(whole.folder / name)["row"]) * (1 + name.startswith("target")) for name in shards}
    assert sum(embedded) == sum(counts.values()) < total
    embedded.clear()
    open_store().fill()
    store.fill()
    assert not embedded


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


@pytest.mark.survives("embeddings of another model, other data or another setting", "refused, with both values")
def test_another_fingerprint_is_refused(open_store, test_set, make_model, tmp_path, monkeypatch, embedded):
    open_store().fill()
    embedded.clear()
    with torch.no_grad():
        retrained = make_model()
        retrained.condition_position_embedding[0] += 2.0**-20
    small, other_eps = make_model(image_size=16), make_model(layer_norm_eps=1e-3)
    changed = ProductTestSet(shutil.copytree(test_set.root, tmp_path / "changed"))
    file = changed.files["distractors"][1]
    table = pq.read_table(file)
    pq.write_table(table.slice(0, len(table) - 1), file, row_group_size=7)
    changed = ProductTestSet(changed.root)
    plain = Encoder(make_model(), "category")
    for name, then, choices in (
        ("model.weights", weights_digest(plain.model), {"encoder": Encoder(retrained, "category")}),
        ("model.image_size", "32 then, 16", {"encoder": Encoder(small, "category")}),
        ("model.layer_norm_eps", "1e-05 then, 0.001", {"encoder": Encoder(other_eps, "category")}),
        ("conditioning", "'category' then, 'none'", {"encoder": Encoder(make_model(), "none")}),
        ("compute_dtype", "'float32' then, 'bfloat16'", {"encoder": Encoder(make_model(), "category", bf16=True)}),
        ("data.distractors", "2 files of", {"of": changed}),
    ):
        with pytest.raises(ValueError, match=f"another model, or of other data:\n(.*\n)*  {name}: .*{then}") as error:
            open_store(**choices).fill()
        assert " now\nTake the same ones, give another folder with --embeds" in str(error.value)
    with pytest.raises(ValueError, match="data.categories: "):
        monkeypatch.setattr(test_set, "categories", lambda: ["Bags"] * 12)
        open_store().fill()
    monkeypatch.undo()
    monkeypatch.setattr(store_module, "ROWS", 9)
    with pytest.raises(ValueError, match="rows_of_a_shard: 8 then, 9 now"):
        open_store().fill()
    assert not embedded


def test_fingerprint_knows_what_is_the_same(test_set, make_model, tmp_path):
    """A copy elsewhere, and weights that went through a file."""
    model = make_model()
    facts = fingerprint(Encoder(model, "category"), parts_of(test_set))
    model.save_pretrained(tmp_path / "model")
    moved = ProductTestSet(shutil.copytree(test_set.root, tmp_path / "moved"))
    again = type(model).from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert fingerprint(Encoder(again, "category"), parts_of(moved)) == facts == json.loads(json.dumps(facts))


def test_a_folder_of_something_else_is_left_alone(open_store, tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="model has .safetensors files but no manifest.json.*--embeds"):
        open_store("model").fill()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/manifest.json").write_text('{"run": {}}')
    with pytest.raises(ValueError, match="not of embeddings .KeyError.'made_with'.*--embeds"):
        open_store("checkpoint").fill()


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
    with pytest.raises(TooManyBadImages, match="5 of 41 distractors"):
        open_store(tolerance=Tolerance(0.12)).fill()
    assert not caplog.text


def test_a_series_of_bad_images_across_shards(open_store, make_test_set, tmp_path, embedded):
    """Rows 13 to 18, of which 16 begins a shard; met by one run, by two, or only found, before anything is embedded."""
    shutil.rmtree(tmp_path / "test")
    six = ProductTestSet(make_test_set(products=3, distractors=30, bad={"jpg": dict.fromkeys(range(13, 19), b"")}))
    open_store("six", of=six, tolerance=Tolerance(0.5, 7)).fill()
    for missing in ((), (1,), (2,), (1, 2), (3,)):
        for number in missing:
            (tmp_path / f"six/distractor-{number:05d}.safetensors").unlink()
        embedded.clear()
        with pytest.raises(TooManyBadImages, match="6 in a row, the last one row 18 of the distractors"):
            open_store("six", of=six, tolerance=Tolerance(0.5, 6)).fill()
        assert sum(embedded) == (5 if 1 in missing else 0)
        open_store("six", of=six, tolerance=Tolerance(0.5, 7)).fill()


def test_a_series_of_bad_images_across_processes(open_store, make_test_set, tmp_path, monkeypatch):
    """Rows 5 to 7, 8, and 16 to 18. This process embeds nothing; what is missing another one makes, or does not."""
    shutil.rmtree(tmp_path / "test")
    seven = ProductTestSet(make_test_set(2, 30, bad={"jpg": dict.fromkeys([5, 6, 7, 8, 16, 17, 18], b"")}))
    open_store("seven", of=seven, tolerance=Tolerance(0.5, 5)).fill()
    shard = tmp_path / "seven/distractor-00001.safetensors"
    theirs = shard.read_bytes()
    shard.unlink()
    monkeypatch.setattr(store_module, "own_share", lambda rows: (0, 0))
    # 5 to 7 and 16 to 18 are not taken for a series of six.
    with pytest.raises(FileNotFoundError, match="distractor-00001.* made by another process and is not here.*--embeds"):
        open_store("seven", of=seven, tolerance=Tolerance(0.5, 4)).fill()
    monkeypatch.setattr(PartialState, "wait_for_everyone", lambda self: shard.write_bytes(theirs))
    open_store("seven", of=seven, tolerance=Tolerance(0.5, 5)).fill()
    shard.unlink()
    with pytest.raises(TooManyBadImages, match="4 in a row, the last one row 8"):
        open_store("seven", of=seven, tolerance=Tolerance(0.5, 4)).fill()


def test_one_shard_is_in_memory_at_a_time(open_store, monkeypatch):
    """So it does not grow with the number of distractors, in either protocol."""
    seen, recount, store = {}, BadImageCounter.recount, open_store()

    def unmapped(*args):
        assert str(store.folder) not in Path("/proc/self/maps").read_text(), "what is kept of a shard keeps no file"
        recount(*args)

    monkeypatch.setattr(BadImageCounter, "recount", unmapped)
    for counter in (RankCounter, TopShares):

        def counted(self, embeds, *args, plain=counter.add, name=counter.__name__):
            seen.setdefault(name, []).append(len(embeds))
            return plain(self, embeds, *args)

        monkeypatch.setattr(counter, "add", counted)
    evaluate_bootstrap(EmbeddedTestSet(store), BootstrapSettings([36], folds=2))
    evaluate_paper(EmbeddedTestSet(store))
    assert seen["RankCounter"][:6] == seen["TopShares"] == [7, 7, 6, 8, 7, 1]


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


def test_float32_is_kept_as_it_is_and_is_another_store(make_test_set, tiny_model, tmp_path):
    test_set, encoder = ProductTestSet(make_test_set()), Encoder(tiny_model, "category")
    store = StoredTestSet(tmp_path / "wide", encoder, test_set, batch_size=64, dtype="float32")
    store.fill()
    plain = embed_products(encoder, test_set, 64).embeds["target"]
    assert load_file(tmp_path / "wide/target-00000.safetensors")["embeds"].dtype == torch.float32
    torch.testing.assert_close(store.whole("target"), plain, rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="dtype: 'float32' then, 'float16' now"):
        StoredTestSet(tmp_path / "wide", encoder, test_set, batch_size=64).fill()


def test_a_shard_says_whose_its_rows_are(open_store):
    store = open_store()
    store.fill()
    with safe_open(store.folder / "distractor-00002.safetensors", "pt") as shard:  # rows 16 to 23, of two files
        about = json.loads(shard.metadata()["rows"])
    assert about["product_ids"] == [f"d{row}" for row in range(16, 24)]
    assert about["files"] == [["distractors/0.parquet", 16, 7], ["distractors/1.parquet", 0, 1]]


def test_a_manifest_is_written_in_this_order(open_store):
    """A store's bytes are compared by whoever keeps one: neither its facts nor their order change unnoticed."""
    store = open_store()
    store.fill()
    text = (store.folder / store_module.MANIFEST).read_text()
    manifest = json.loads(text)
    assert text == json.dumps(manifest, indent=1) + "\n" and list(manifest) == ["made_with", "source"]
    names = [name for name in manifest["made_with"] if not name.startswith("model.")]
    assert names == [
        *("rows_of_a_shard", "dtype", "conditioning", "compute_dtype", "preprocessing", "preprocessing.mean"),
        *("preprocessing.std", "embedding_dim", "data.products", "data.distractors", "data.categories"),
    ]
    assert list(manifest["source"]) == ["model", "data_root"]
