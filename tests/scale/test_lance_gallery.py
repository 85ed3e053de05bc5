"""A test set whose gallery's embeddings are in a Lance table: the numbers of a run that embeds all itself."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from made import as_flags, encode, noise, squares, tiny_condvit, write_test_set
from PIL import Image

pytest.importorskip("lance")

import evaluate_lrvsf
import search_catalog
from lrvsf.command import explain, is_refusal
from lrvsf.data.images import Tolerance
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding import store as store_module
from lrvsf.embedding.encoder import Encoder
from lrvsf.scale.lance_gallery import Gallery, gallery_parts
from lrvsf.scale.lance_table import lance

CPUS = 2  # of the cluster, whatever the machine has
TURNED, CUT_OUT, BAD, TWICE = 6, 9, 31, 20  # rows of distractors
EMPTY = 4  # a product without a picture


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a model, a test set, and the table of its gallery.

    All is embedded one by one, as a picture's last bits may depend on those that it shares a batch with.
    """
    folder = tmp_path_factory.mktemp("gallery")
    tiny_condvit().save_pretrained(folder / "model")
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = noise(24, 30).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    gallery = {TURNED: encode(noise(40, 24), "JPEG", exif=exif), CUT_OUT: encode(clear), BAD: b"no"}
    gallery |= {TWICE: squares(2000, quality=95)}  # the picture of the first one
    bad = {"COMPLEX_IMG": {9: b"<html>"}, "SIMPLE_IMG": {EMPTY: b""}, "jpg": gallery}
    write_test_set(folder / "test", 12, 40, bad=bad)
    words = [str(folder / "test"), str(folder / "catalog"), "--batch_size", "1", "--max_bad_fraction", "0.2"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    search_catalog.main(["index", str(folder / "model"), *words])
    search_catalog.main(["lance", str(folder / "catalog"), str(folder / "test.lance")])
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def flags(built, monkeypatch):
    """Shards of eight rows, batches of one."""
    monkeypatch.setattr(store_module, "ROWS", 8)
    monkeypatch.setattr(evaluate_lrvsf, "plot_all", lambda *given: None)  # it takes seconds
    named = as_flags(model=built / "model", data_root=built / "test", batch_size=1, bf16=False, max_bad_fraction=0.2)
    return [*named, *as_flags(gallery_sizes=[10, 38], folds=3, seed=5)]


@pytest.fixture
def embedded(monkeypatch):
    """How many pictures the model was given, in a list."""
    sizes, embed = [], Encoder.embed

    def counted(self, pixels, *asked):
        sizes.append(len(pixels))
        return embed(self, pixels, *asked)

    monkeypatch.setattr(Encoder, "embed", counted)
    return sizes


def written(folder):
    names = ["results.json", "queries.parquet"]
    return [(folder / name).read_bytes() for name in names] + [
        path.read_bytes() for path in sorted((folder / "embeds").glob("*.safetensors"))
    ]


def test_results_equal_those_of_a_run_that_embeds_itself(built, flags, embedded, tmp_path):
    evaluate_lrvsf.main([*flags, "--output_dir", str(tmp_path / "one")])
    assert sum(embedded) == 2 * 10 + 39
    embedded.clear()
    evaluate_lrvsf.main([*flags, "--output_dir", str(tmp_path / "two"), "--embeds", str(built / "test.lance")])
    assert sum(embedded) == 10 + 2, "queries, and what a catalog turns upright or puts on white"
    assert written(tmp_path / "one") == written(tmp_path / "two")
    assert not list((built / "test.lance").glob("*.json")), "nothing is written into the table"


def test_by_a_cluster(cluster, built, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(built)
    evaluate_lrvsf.main([*flags, "--output_dir", str(tmp_path / "one"), "--embeds", "test.lance@g-000001"])
    many = ["--embeds", "test.lance", "--engine", "ray", "--actors", "2"]
    evaluate_lrvsf.main([*flags, "--output_dir", str(tmp_path / "many"), *many])
    assert written(tmp_path / "one") == written(tmp_path / "many")


def test_pictures_are_found_by_their_bytes(built):
    """The naive twin looks through all rows."""
    table, data = lance.dataset(built / "test.lance"), ProductTestSet(built / "test")
    (column,) = (name for name in table.schema.names if name.startswith("__vector_"))
    gallery = Gallery(built / "test.lance", table.version, column)
    digests = table.to_table(columns=["__digest"])["__digest"].to_pylist()
    pictures = [product.target_image for product in data.products()] + [image for _, image in data.distractors()]
    found = [gallery.find(picture) for picture in [*pictures, None]]
    naive = [hashlib.sha256(picture or b"").digest() for picture in [*pictures, None]]
    assert found == [digests.index(one) if one in digests else None for one in naive]
    assert found[12 + TWICE] == found[12] and [row for row, one in enumerate(found) if one is None] == [
        EMPTY,
        12 + BAD,
        52,
    ]


def refusal(built, table, root=None, model=None, tolerance=0.2):
    """What is said of a table, in one line."""
    encoder = Encoder(model or tiny_condvit(), "category")
    with pytest.raises((ValueError, OSError)) as error:
        parts = gallery_parts(str(table), encoder, ProductTestSet(root or built / "test"), Tolerance(tolerance))
        store_module.EmbeddingStore(built / "unused", encoder, parts, "test", tolerance=Tolerance(tolerance)).fill()
    assert is_refusal(error.value) and "\n" not in explain(error.value)
    return explain(error.value)


def test_a_table_of_another_model(built):
    model = tiny_condvit()
    with torch.no_grad():
        model.visual_projection.weight.mul_(-1)
    said = refusal(built, built / "test.lance", model=model)
    assert "has no embeddings by " in said and "which differs in model.weights. Evaluate that one, or index" in said
    assert "embedding_dim, model.projection_dim" in refusal(
        built, built / "test.lance", model=tiny_condvit(projection_dim=8)
    )


def test_a_table_of_another_test_set(built, tmp_path):
    other = write_test_set(tmp_path / "other", 12, 60)
    said = refusal(built, built / "test.lance", other)
    assert "lacks 21 of the 60 distractors of" in said, "20, and one that was no picture"
    assert f"such as 'd{BAD}'; name this test set's table, or index the test set by this model" in said


def test_a_picture_that_the_table_lacks_is_named(built, tmp_path):
    """Where the ids are the same, and so are as many pictures as may be bad."""
    other = write_test_set(tmp_path / "other", 12, 43)
    said = refusal(built, built / "test.lance", other)
    assert f"has no picture like that of 'p{EMPTY}', row {EMPTY} of products.parquet; index the test set by" in said


def copied(built, tmp_path, change):
    """The table with other vectors."""
    table = lance.dataset(built / "test.lance")
    rows = table.to_table()
    (column,) = (name for name in table.schema.names if name.startswith("__vector_"))
    vectors = np.stack(rows[column].to_numpy())
    cells = change(vectors)
    made = rows.set_column(rows.schema.get_field_index(column), pa.field(column, cells.type), cells)
    lance.write_dataset(made.replace_schema_metadata(table.schema.metadata), tmp_path / "changed.lance")
    lance.dataset(tmp_path / "changed.lance").tags.create("answers", 1)
    return tmp_path / "changed.lance"


def fixed(vectors, mask=None):
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1], mask=mask)


@pytest.mark.parametrize(
    ("value", "says"), [(np.nan, "has length nan, where 1 must be"), (2, r"has length 2\.\d+, where 1 must be")]
)
def test_rows_that_are_no_unit_rows(built, tmp_path, value, says):
    def change(vectors):
        vectors[7, 3] = value
        return fixed(vectors)

    said = refusal(built, copied(built, tmp_path, change))
    assert re.search(f"is damaged .the embedding of 'p8', row 7, {says}", said), said


def test_rows_without_an_embedding(built, tmp_path):
    said = refusal(built, copied(built, tmp_path, lambda rows: fixed(rows, pa.array(np.arange(len(rows)) == 5))))
    assert "has 1 rows without an embedding by" in said and "let this one answer" in said


def test_vectors_of_other_dimensions(built, tmp_path):
    said = refusal(built, copied(built, tmp_path, lambda rows: fixed(np.ascontiguousarray(rows[:, :12]))))
    assert "halffloat" in said and "[12], of 16 dimensions" in said


def test_what_is_wrong_before_anything_is_loaded(built, flags, tmp_path, monkeypatch):
    out = ["--output_dir", str(tmp_path / "out"), "--embeds"]
    table = str(built / "test.lance")
    with pytest.raises(
        FileNotFoundError, match=r"there is no Lance table .*tset.lance \(did you mean .*test.lance\?\)"
    ):
        evaluate_lrvsf.main([*flags, *out, str(built / "tset.lance")])
    with pytest.raises(ValueError, match="store_dtype=float32, but a Lance table has float16. Leave"):
        evaluate_lrvsf.main([*flags, *out, table, "--store_dtype", "float32"])
    with pytest.raises(FileNotFoundError, match="has no version 'g-000007'; it has g-000001"):
        evaluate_lrvsf.main([*flags, *out, f"{table}@g-000007"])
    monkeypatch.setitem(sys.modules, "lance", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r'names a Lance table, which needs Lance: pip install "lrvsf\[ray\]"$'):
        evaluate_lrvsf.main([*flags, *out, table])


def test_an_evaluation_does_without_lance():
    said = "import sys, evaluate_lrvsf; assert not {'lance', 'ray'} & set(sys.modules)"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", said], cwd=root, env=os.environ, check=True, timeout=600)
