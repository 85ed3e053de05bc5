"""evaluate_lrvsf.py --query_views: what it measures and leaves as it was, and that nobody takes it for published."""

import json
import sys
from pathlib import Path

import pytest
import torch
from made import as_flags, write_tiny_reader
from PIL import ImageOps

import evaluate_lrvsf
from lrvsf.data.images import Tolerance, decode_image
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder, load_model
from lrvsf.embedding.parts import QueryViews
from lrvsf.embedding.pipeline import embed_share
from lrvsf.embedding.views import read_views
from lrvsf.evaluation.embedded import EmbeddedTestSet
from lrvsf.evaluation.pages import compare
from lrvsf.hub.leaderboard import add_results

sys.path.insert(0, str(Path(__file__).parents[2] / "spaces/leaderboard"))

from collect import read_results  # noqa: E402


@pytest.fixture
def run(tmp_path, make_test_set, tiny_model, capsys):
    """`run(name, **flags)`: evaluates into tmp_path/name; gives its results and what it printed."""
    tiny_model.save_pretrained(tmp_path / "model")
    root = make_test_set(9, 31, bad={"COMPLEX_IMG": {4: b"broken"}, "SIMPLE_IMG": {6: b""}})
    places = {"model": tmp_path / "model", "data_root": root, "batch_size": 4, "bf16": False, "max_bad_fraction": 0.3}

    def run(name, **flags):
        given = {"gallery_sizes": [10, 29], "folds": 3, **flags}
        evaluate_lrvsf.main(as_flags(**places, **given, output_dir=tmp_path / name))
        return json.loads((tmp_path / name / "results.json").read_text()), capsys.readouterr().out

    return run


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_whole_picture_alone_is_what_it_was(run, tmp_path):
    plain, printed = run("plain")
    once, said = run("once", query_views="whole")
    assert "query_views" not in plain and "query views" not in printed and once == plain
    assert files_of(tmp_path / "once") == files_of(tmp_path / "plain")
    assert said == printed.replace("/plain", "/once")


def test_views_are_measured_beside_the_whole_picture(run, tmp_path, monkeypatch):
    """Nothing of the gallery is embedded again, and what was embedded stays as it was, every byte."""
    plain, _ = run("plain", sheet=2)
    kept = files_of(tmp_path / "plain/embeds")
    sizes, embed = [], Encoder.embed
    monkeypatch.setattr(Encoder, "embed", lambda *args: sizes.append(len(args[1])) or embed(*args))
    found, printed = run("views", embeds=tmp_path / "plain/embeds", query_views="flip,whole,center0.8", sheet=2)
    assert sum(sizes) == 3 * 8, "the three views of the queries that can be read, and nothing else"
    assert found["query_views"] == "whole,center0.8,flip" and list(set(found) - set(plain)) == ["query_views"]
    assert found["skipped"] == plain["skipped"] and found["protocol"] == "bootstrap"
    assert "query views   whole,center0.8,flip, as no published protocol asks\n" in printed
    told = "Each query is the mean of its views whole,center0.8,flip, as no published protocol asks."
    pages = [(tmp_path / name / "sheet.html").read_text() for name in ("plain", "views")]
    assert [told in page for page in pages] == [False, True]
    after = files_of(tmp_path / "plain/embeds")
    assert {path: data for path, data in after.items() if path.parts[0] != "query_views"} == kept

    sizes.clear()
    again, _ = run("again", embeds=tmp_path / "plain/embeds", query_views="whole,center0.8,flip")
    assert not sizes and again == found, "a second run takes what the first has stored"


def test_queries_are_those_of_the_rows_that_can_be_read(make_test_set, make_store, tiny_model):
    """A product whose target alone is damaged has a query, which is not asked."""
    test_set = ProductTestSet(make_test_set(9, 31, bad={"COMPLEX_IMG": {4: b"broken"}, "SIMPLE_IMG": {6: b""}}))
    encoder, views = Encoder(tiny_model, "category"), read_views("whole,center0.8")
    data = EmbeddedTestSet(make_store(encoder, test_set, 4, max_bad=0.3), views=views)
    data.fill()
    alone = embed_share(encoder, QueryViews(test_set, views), 9, Tolerance(0.3))
    assert (data.rows, alone.rows) == ([0, 1, 2, 3, 5, 7, 8], [0, 1, 2, 3, 5, 6, 7, 8])
    asked = alone.embeds["query"][[0, 1, 2, 3, 4, 6, 7]]
    torch.testing.assert_close(data.queries, asked, rtol=0, atol=1e-3)  # float16's


@pytest.mark.survives("embeddings of other views, or of none, are given to an evaluation", "refused with what differs")
def test_stores_of_views_are_not_mistaken(run, tmp_path):
    run("views", query_views="whole,flip")
    views = tmp_path / "views/embeds/query_views/whole,flip"
    with pytest.raises(ValueError, match="holds embeddings by another model, or of other data:\n.*whole,flip of"):
        run("plain", embeds=views)
    other = views.with_name("whole,center0.8")
    views.rename(other)
    with pytest.raises(ValueError, match="data.products: 'whole,flip of .* then, 'whole,center0.8 of .* now"):
        run("other", embeds=tmp_path / "views/embeds", query_views="whole,center0.8")


def test_a_comparison_shows_views_and_pairs_them(run, tmp_path, capsys):
    run("plain")
    run("views", embeds=tmp_path / "plain/embeds", query_views="flip,whole")
    compare.main(["--paired", f"once={tmp_path / 'plain'}", f"twice={tmp_path / 'views'}"])
    printed = capsys.readouterr().out
    told = "Queries by views of their pictures, as no published protocol asks: twice (whole,flip)."
    assert told in " ".join(printed.split())
    assert "first:  once (conditioning category)\n" in printed
    assert "second: twice (conditioning category, query views whole,flip)\n" in printed


def test_no_published_protocol_and_no_page_on_conditions_takes_views(run, tmp_path):
    for protocol in ("leaderboard", "paper"):
        with pytest.raises(ValueError, match=f"query_views=whole,flip has no place in the {protocol} protocol"):
            run("x", query_views="whole,flip", protocol=protocol)
    with pytest.raises(ValueError, match="--conditioning_page asks with the whole picture"):
        run("x", query_views="flip", conditioning_page=True)
    with pytest.raises(ValueError, match="there is no view 'flop'"):
        run("x", query_views="flop")
    assert not (tmp_path / "x").exists()


def test_neither_the_card_nor_the_leaderboard_takes_them(run, tmp_path):
    """Even if somebody writes a published protocol's name over theirs."""
    found, _ = run("views", query_views="whole,flip")
    (tmp_path / "model/README.md").write_text("---\nlicense: mit\n---\n")
    with pytest.raises(ValueError, match="protocol 'bootstrap', which the leaderboard does not read"):
        add_results(tmp_path / "model", found)
    posed = {**found, "protocol": "leaderboard"}
    with pytest.raises(ValueError, match="query_views=whole,flip: .*no published protocol asks. Evaluate without"):
        add_results(tmp_path / "model", posed)
    assert (tmp_path / "model/README.md").read_text() == "---\nlicense: mit\n---\n"
    entry, problems = read_results("posed", json.dumps(posed))
    assert entry is None and problems == ["its queries are means of several views, and do not compare"]


def test_views_are_asked_in_words_too(tmp_path, make_test_set):
    loaded = load_model(str(write_tiny_reader(tmp_path / "reader")))
    test_set, views = ProductTestSet(make_test_set(5, 3)), read_views("whole,flip")
    encoder = Encoder(loaded, "text")
    found = embed_share(encoder, QueryViews(test_set, views), 2).embeds["query"]
    for product, row in zip(test_set.products(), found, strict=True):
        image = decode_image(product.query_image)
        looks = [encoder.pixels_of(look) for look in (image, ImageOps.mirror(image))]
        mean = encoder.embed(looks, [product.caption] * 2).mean(0)
        torch.testing.assert_close(row, mean / mean.norm(), rtol=0, atol=1e-5)
