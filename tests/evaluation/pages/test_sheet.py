"""The choice of queries, and the page, parsed: all of it is in the file."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from made import as_flags, squares
from PIL import Image

import evaluate_lrvsf
from lrvsf.data.testset import Product, ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.evaluation.arguments import PictureArguments
from lrvsf.evaluation.embedded import EmbeddedTestSet, StoredTestSet
from lrvsf.evaluation.pages.sheet import Answer, Retrieval, by_product, choose, render_sheet, thumbnail, write_sheet


class Page(HTMLParser):
    """What a browser would fetch, the text, and for each article its figures as (is the target, alt)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched, self.text, self.articles, self.tags, self.target = [], "", {}, set(), False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.fetched += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "article":
            self.articles[attributes["id"]] = []
        if tag == "figure":
            self.target = "target" in attributes.get("class", "").split()
        if tag == "img":
            self.articles[list(self.articles)[-1]].append((self.target, attributes["alt"]))

    def handle_data(self, data):
        self.text += data


def naive_top(queries, embeds, items, count):
    """The twin: the full matrix, and Python's sort by score, then by number."""
    scores = (queries.double() @ embeds.double().T).tolist()
    return [[item for _, item in sorted(zip((-s for s in row), items, strict=True))][:count] for row in scores]


def test_choice_by_hand():
    ranks = torch.tensor([4.0, 1, 1.5, 1, 9, 1, 4])
    assert choose(ranks, 2, seed=0)[1] == [4, 0] and choose(ranks, 9, seed=0) == ([1, 3, 5], [4, 0, 6, 2])
    drawn = {tuple(choose(ranks, 2, seed)[0]) for seed in range(20)}
    assert drawn == {(1, 3), (1, 5), (3, 5)}
    assert choose(torch.ones(3), 5, 0) == ([0, 1, 2], []) and choose(torch.full((2,), 2.0), 5, 0) == ([], [0, 1])


def test_page_escapes_what_the_data_says():
    product = Product(3, squares(1), squares(2), "Bags & <b>more</b>", "<script>alert(1)</script>")
    found = [Answer(False, "distractor 8", squares(3), "<b>d8</b>", 2), Answer(True, "product 3", squares(1))]
    facts = {
        "model": "a<i>b",
        "conditioning": "category",
        "views": "",
        "n_products": 1,
        "n_distractors": 1,
        "n_first": 0,
    }
    page = render_sheet([], [Retrieval(product, 2.5, found)], {**facts, "recalls": {1: 0.0, 10: 1.0}, "seed": 7})
    parsed = Page(page)
    assert not {"script", "i"} & parsed.tags and "<script>alert(1)</script>" in parsed.text
    assert "Bags & <b>more</b>" in parsed.text and "No query found its target first." in parsed.text
    assert re.search(r"rank\s+2\.5", parsed.text) and "R@1 0.0 %" in parsed.text and "R@10 100.0 %" in parsed.text
    shown = [(False, "scene"), (True, "the target"), (False, "distractor 8"), (True, "product 3")]
    assert parsed.articles == {"query-3": shown}
    assert "1<b>d8</b>and 2 more" in parsed.text
    unconditioned = render_sheet(
        [], [Retrieval(product, 2.5, found)], {**facts, "conditioning": "none", "recalls": {1: 0, 10: 1}, "seed": 7}
    )
    assert "no condition" in Page(unconditioned).text and "no condition" not in parsed.text


def test_thumbnail_is_the_picture():
    image = Image.open(io.BytesIO(base64.b64decode(thumbnail(squares(5)).removeprefix("data:image/jpeg;base64,"))))
    original = Image.open(io.BytesIO(squares(5)))
    assert image.format == "JPEG" and image.size == (128, 128)
    middle = np.asarray(image.resize((36, 36)).crop((0, 3, 36, 33)), dtype=float)
    assert np.abs(middle - np.asarray(original, dtype=float)).mean() < 25  # of 255; another picture is above 70


def test_the_script_writes_what_a_full_sort_finds(tiny_model, make_test_set, tmp_path, capsys, monkeypatch):
    """The second query cannot be read, nor the first distractor: rows are not positions."""
    root = make_test_set(bad={"COMPLEX_IMG": {1: b"broken"}, "jpg": {0: b""}})
    tiny_model.save_pretrained(tmp_path / "model")
    places = {"model": tmp_path / "model", "data_root": root, "output_dir": tmp_path / "out"}
    evaluate_lrvsf.main(as_flags(**places, sheet=11, gallery_sizes=9, folds=2, batch_size=5, bf16=0))
    page = (tmp_path / "out" / "sheet.html").read_text()
    parsed = Page(page)
    assert f"Wrote {tmp_path / 'out' / 'sheet.html'}." in capsys.readouterr().out
    assert all(address.startswith("data:image/jpeg;base64,") for address in parsed.fetched) and "url(" not in page
    assert "11 queries, each asked once among all 11 targets and\n39 distractors" in parsed.text

    store = StoredTestSet(tmp_path / "out/embeds", Encoder(tiny_model, "category"), ProductTestSet(root), batch_size=5)
    monkeypatch.setattr(Encoder, "embed", None)  # the page and this test take what the evaluation stored
    store.fill()
    queries, targets = store.whole("query"), store.whole("target")
    gallery = torch.cat([targets, *(embeds for embeds, _ in store.blocks("distractor"))])
    rows = store.rows("products").tolist()
    names = [f"product {row}" for row in rows] + [f"distractor {row}" for row in store.rows("distractors")]
    answers = naive_top(queries, gallery, range(50), 50)
    ranks = [1 + answer.index(place) for place, answer in enumerate(answers)]
    assert 1 < sum(1 < rank <= 10 for rank in ranks) < sum(rank > 1 for rank in ranks)  # some show their target
    first = [place for place in range(11) if ranks[place] == 1]
    worst = sorted(set(range(11)) - set(first), key=lambda place: -ranks[place])
    assert [f"query-{rows[place]}" for place in first + worst] == list(parsed.articles)
    for place in first + worst:
        figures = parsed.articles[f"query-{rows[place]}"]
        assert figures[2:] == [(item == place, names[item]) for item in answers[place][:10]]
    shown = [int(rank) for rank in re.findall(r"rank\s+(\d+)\s", parsed.text)]
    assert shown == [ranks[place] for place in first + worst]


def test_everything_found(tiny_model, make_test_set, make_store, tmp_path):
    """Without a condition a query that is its target is found first, and framed."""
    store = make_store(Encoder(tiny_model, "none"), ProductTestSet(make_test_set(same=True)))
    write_sheet(EmbeddedTestSet(store), tmp_path / "a" / "sheet.html", count=20)
    parsed = Page((tmp_path / "a" / "sheet.html").read_text())
    assert "Every query found its target first." in parsed.text and "R@1 100.0 %" in parsed.text
    assert len(parsed.articles) == 12
    assert all(figures[2] == (True, f"product {query[6:]}") for query, figures in parsed.articles.items())


def test_flags_that_make_no_sense():
    with pytest.raises(ValueError, match="sheet=-1"):
        PictureArguments(sheet=-1)
    with pytest.raises(ValueError, match="needs --attention"):
        PictureArguments(attention_categories=["Bags"])


def test_pictures_of_one_product_are_one_answer():
    ids = {7: "a", 3: "b", 9: None, 4: "a", 1: None, 2: "b"}
    assert by_product([7, 9, 3, 4, 1, 2], ids) == [[7, 4], [9], [3, 2], [1]]
