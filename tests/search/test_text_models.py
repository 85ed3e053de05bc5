"""A catalog by a text model: words ask, and its categories' names, as those of a category model do."""

import json

import numpy as np
import pytest
from made import squares, tiny_condvit, write_layout, write_tiny_reader

import search_catalog
from lrvsf.search.catalog import Catalog
from modeling_condvit import CondViTModel


@pytest.fixture
def catalog(tmp_path):
    """Made by a model that reads sentence embeddings and has those of its categories, but no text encoder."""
    model = tiny_condvit(condition="text", text_dim=32)
    model.category_text_embeds.normal_()
    model.save_pretrained(tmp_path / "model")
    return indexed(tmp_path)


def indexed(folder):
    images = [squares(number) for number in range(6)]
    root = write_layout(folder / "test", {"SIMPLE_IMG": images, "COMPLEX_IMG": images}, {"jpg": [squares(50)]})
    search_catalog.main(["index", str(folder / "model"), str(root), str(folder / "out"), "--device", "cpu"])
    return Catalog.open(folder / "out", device="cpu")


@pytest.fixture
def reader(tmp_path):
    """Made by a model that reads words by its CLIP's own text tower."""
    write_tiny_reader(tmp_path / "model")
    return indexed(tmp_path)


def test_words_ask(reader):
    said, named = reader.embed_texts([squares(3)], ["Bags", "the red bag"]), reader.embed([squares(3)], ["Bags"])
    np.testing.assert_allclose(said[:1], named, atol=1e-6)
    assert not np.allclose(said[0], said[1])
    bags, red = reader.search(squares(3), text=["Bags", "the red bag"], k=2)
    assert [hit.rank for hit in red] == [1, 2] and red[0].standing is None
    assert [hit.id for hit in bags] == [hit.id for hit in reader.search(squares(3), "Bags", k=2)]
    assert [len(hits) for hits in reader.search([squares(1), squares(2)], text="bag", k=3)] == [3, 3]


def test_words_that_cannot_be_meant_are_refused(reader):
    with pytest.raises(ValueError, match="category and text were given"):
        reader.search(squares(3), "Bags", text="bag")
    with pytest.raises(ValueError, match="says nothing"):
        reader.search(squares(3), text=["bag", " "])


def test_query_takes_words(reader, tmp_path, capsys):
    (tmp_path / "photo.jpg").write_bytes(squares(3))
    out, photo = str(tmp_path / "out"), str(tmp_path / "photo.jpg")
    asked = ["--text", "the red bag", "--text", "shoe"]
    capsys.readouterr()
    search_catalog.main(["query", out, "--image", photo, *asked, "--k", "2", "--json", "--device", "cpu"])
    told = json.loads(capsys.readouterr().out)
    assert [(one["condition"], len(one["hits"])) for one in told] == [("the red bag", 2), ("shoe", 2)]
    with pytest.raises(ValueError, match="give one of them"):
        search_catalog.main(["query", out, "--image", photo, *asked, "--category", "Bags"])


def asked(words_shop, capsys, *words):
    """What `query` prints of the calibrated catalog."""
    (words_shop / "asked.jpg").write_bytes(squares(90))
    capsys.readouterr()
    place = [str(words_shop / "catalog"), "--image", str(words_shop / "asked.jpg")]
    search_catalog.main(["query", *place, *words, "--k", "3", "--device", "cpu"])
    return capsys.readouterr().out


def test_words_are_printed_in_80_columns_without_a_standing(words_shop, capsys):
    long = "the red bag " * 5_000
    told = asked(words_shop, capsys, "--text", "a \x1b[31mred\n bag", "--text", long, "--text", "\u9752\u8272" * 60)
    heads = [part.split("\n")[0] for part in told.split("\n\n")]
    assert heads[0] == "a \\x1b[31mred bag" and heads[1] == ("the red bag " * 7)[:77] + "..."
    assert heads[2] == "\u9752\u8272" * 19 + "..."  # each takes two columns
    assert max(map(len, told.split("\n"))) <= 80 and "no close match" not in told
    by_name = json.loads(asked(words_shop, capsys, "--category", "Bags", "--json"))
    in_words = json.loads(asked(words_shop, capsys, "--text", "Bags", "--json"))
    assert None not in [hit["standing"] for hit in by_name[0]["hits"]]
    assert {(hit["standing"], hit["close"]) for hit in in_words[0]["hits"]} == {(None, None)}


def test_a_sheet_names_the_words_escaped(words_shop, tmp_path, capsys):
    asked(words_shop, capsys, "--text", "<b>red</b> & blue", "--html", str(tmp_path / "sheet.html"))
    page = (tmp_path / "sheet.html").read_text()
    assert "<h2>&lt;b&gt;red&lt;/b&gt; &amp; blue</h2>" in page and 'class="hit far"' not in page


def test_a_space_reads_words_and_tells_no_folder(words_shop, tmp_path):
    search_catalog.main(["space", str(words_shop / "catalog"), str(tmp_path / "space")])
    copy = Catalog.open(tmp_path / "space/catalog", str(tmp_path / "space/model"))
    found = copy.search(squares(90), text="the red bag")
    assert found == Catalog.open(words_shop / "catalog").search(squares(90), text="the red bag")
    for path in (tmp_path / "space").rglob("*"):
        assert path.is_dir() or str(words_shop).encode() not in path.read_bytes(), path


def test_a_space_whose_encoder_stays_here_is_refused(words_shop, tmp_path):
    clip = str(words_shop / "clip")
    CondViTModel.from_clip(clip, text_encoder=clip).save_pretrained(tmp_path / "model")
    indexed(tmp_path)
    with pytest.raises(ValueError, match="reads texts by the folder .*clip, which is of this machine alone"):
        search_catalog.main(["space", str(tmp_path / "out"), str(tmp_path / "space")])
    assert not (tmp_path / "space").exists()


def test_names_ask_and_other_words_are_refused(catalog):
    assert catalog.conditions[:2] == ["Bags", "Feet"] and len(catalog) == 7
    bags, feet, plain = catalog.embed([squares(3)], ["Bags", "Feet", None])
    assert not np.allclose(bags, feet) and not np.allclose(bags, plain)
    np.testing.assert_allclose(plain, catalog.vectors.take(np.array([3]))[0], atol=2e-3)
    assert len(catalog.search(squares(3), "Bags", k=4)) == 4
    with pytest.raises(ValueError, match="no text encoder"):
        catalog.search(squares(3), text="the red bag")
    with pytest.raises(ValueError, match="condition 'the red bag' is not one of the model's"):
        catalog.search(squares(3), "the red bag")
