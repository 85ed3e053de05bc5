"""The store: what it holds against plain embedding, what is missing made again to the byte, and what it refuses."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from stored import contents

from lrvsf.data.images import BadImageCounter, Tolerance
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding import store as store_module
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.fingerprint import fingerprint, weights_digest
from lrvsf.embedding.parts import Distractors, Products
from lrvsf.embedding.pipeline import embed_share
from lrvsf.embedding.store import renormalised
from lrvsf.evaluation.bootstrap import BootstrapSettings, evaluate_bootstrap
from lrvsf.evaluation.embedded import EmbeddedTestSet, StoredTestSet
from lrvsf.evaluation.paper import evaluate_paper
from lrvsf.evaluation.precision import TopShares
from lrvsf.evaluation.recall import RankCounter


def parts_of(test_set):
    return Products(test_set), Distractors(test_set)


def test_it_holds_what_plain_embedding_gives(open_store, test_set, tiny_model):
    store, encoder = open_store(), Encoder(tiny_model, "category")
    store.fill()
    products = embed_share(encoder, Products(test_set), 12, Tolerance(1))
    distractors = embed_share(encoder, Distractors(test_set), 41, Tolerance(1))
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
        ("data.distractors", "2 files of", {"data": changed}),
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
    with pytest.raises(ValueError, match="model holds .* and no manifest.json, so it is no folder of .*--embeds"):
        open_store("model").fill()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/manifest.json").write_text('{"run": {}}')
    with pytest.raises(ValueError, match="not of embeddings .KeyError.'made_with'.*--embeds"):
        open_store("checkpoint").fill()


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


def test_float32_is_kept_as_it_is_and_is_another_store(make_test_set, tiny_model, tmp_path):
    test_set, encoder = ProductTestSet(make_test_set()), Encoder(tiny_model, "category")
    store = StoredTestSet(tmp_path / "wide", encoder, test_set, batch_size=64, dtype="float32")
    store.fill()
    plain = embed_share(encoder, Products(test_set), 64).embeds["target"]
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
