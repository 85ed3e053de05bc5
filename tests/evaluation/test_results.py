"""Tables, from results written by hand."""

import json

import pytest

from lrvsf.evaluation.results import (
    comparison_table,
    load_results,
    results_table,
    save_results,
    shown_name,
    wilson_interval,
)


def results(scale: float = 1.0, sizes=(500, 2000)) -> dict:
    def gallery(size):
        recall = {str(k): {"mean": scale * k / (k + size / 500), "std": 0.0123} for k in (1, 5, 10, 20, 50)}
        return {"recall": recall, "ties": {"queries": 100, "tied_queries": 0, "tied_items": 0}}

    return {
        "model": "runs/mini/category",
        "conditioning": "category",
        "embedding_dim": 64,
        "compute_dtype": "float32",
        "protocol": "bootstrap",
        "seed": 3,
        "folds": 20,
        "products_per_fold": 100,
        "n_products": 999,
        "n_distractors": 2001,
        "skipped": {"products": {"truncated": 1}, "distractors": {}},
        "galleries": {str(size): gallery(size) for size in sizes},
    }


def test_results_table():
    lines = results_table(results()).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-3].split() == ["N", "R@1", "R@5", "R@10", "R@20", "R@50"]
    assert lines[-2].split()[:4] == ["500", "50.00", "±", "1.23"]
    assert lines[-1].split()[:4] == ["2,000", "20.00", "±", "1.23"]
    assert "999 products, 2001 distractors" in lines[2] and "1 products (truncated)" in lines[3]
    assert "20 folds of 100 products, seed 3" in lines[4]


def test_results_table_speaks_of_ties():
    tied = results()
    tied["galleries"]["2000"]["ties"]["tied_queries"] = 7
    assert results_table(tied).splitlines()[-1].endswith("of 100 queries, by gallery: 500: 0, 2000: 7")


def test_comparison_table():
    table = comparison_table({"conditioned": results(), "plain CLIP": results(0.5, sizes=(2000, 500, 9000))})
    header, columns, first, second = table.splitlines()
    assert header.split() == ["500", "distractors", "2,000", "distractors"]
    assert columns.split() == ["model", *["R@1", "R@5", "R@10"] * 2]
    assert first.split() == ["conditioned", "50.0", "83.3", "90.9", "20.0", "55.6", "71.4"]
    assert second.split()[:3] == ["plain", "CLIP", "25.0"]


def test_a_comparison_says_what_does_not_compare():
    small, other = results(sizes=(6,)), results(sizes=(6,)) | {"test_set": "another", "seed": 4}
    small["galleries"]["6"]["items"] = other["galleries"]["6"]["items"] = 10
    _, _, first, second, *notes = comparison_table({"a": small, "b": other, "c": small}).splitlines()
    assert first.split()[-1] == second.split()[-1] == "-" and first.split()[2] != "-"
    text = " ".join(" ".join(notes).split())
    assert "-: a gallery has at most K items" in text and "c was not" not in text
    assert "b was not measured on the ground of a, so that they do not compare: test_set, seed differ." in text
    restricted = comparison_table({"a": small, "b": small | {"restrict_to_category": True}})
    assert restricted.endswith("\nOnly items of the target's category: b.")


def test_views_are_told_and_no_published_figure():
    seen = results() | {"query_views": "whole,center0.8,flip"}
    lines = results_table(seen).splitlines()
    assert lines[2] == "query views   whole,center0.8,flip, as no published protocol asks"
    assert [*lines[:2], *lines[3:]] == results_table(results()).splitlines()
    text = " ".join(comparison_table({"a": results(), "b": seen}).split())
    assert text.endswith("Queries by views of their pictures, as no published protocol asks: b (whole,center0.8,flip).")
    assert [shown_name(one) for one in (results(), seen)] == ["category", "category, whole,center0.8,flip"]


def test_comparison_needs_a_common_size():
    with pytest.raises(ValueError, match=r"'a': \[500\], 'b': \[900\]"):
        comparison_table({"a": results(sizes=(500,)), "b": results(sizes=(900,))})
    with pytest.raises(ValueError, match="no results"):
        comparison_table({})


def test_file_round_trip_and_no_half_written_file(tmp_path):
    path = tmp_path / "out" / "results.json"
    save_results(results(), path)
    assert load_results(path) == results()
    with pytest.raises(ValueError):
        save_results({"recall": float("nan")}, path)  # NaN is not JSON
    assert json.loads(path.read_text()) == results()
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_few_queries_are_said_to_tell_little():
    few = results() | {"n_products": 99}
    low, high = wilson_interval(0.2, 99)
    assert (round(100 * low), round(100 * high)) == (13, 29)
    text = " ".join(results_table(few).splitlines()[-2:])
    assert text.startswith(
        "99 queries tell little: the 95 % interval of R@1 at N = 2,000 is 16 points wide, from 13 to 29"
    )
    assert "tell little" not in results_table(results() | {"n_products": 200, "products_per_fold": 200})


def test_wilson_interval_by_hand():
    """The ends are the shares p that are 1.96 of their own deviations, sqrt(p (1 - p) / n), from what was found."""
    for share, count in ((0.2, 9), (0.5, 100), (0.0, 20), (1.0, 20)):
        for end in wilson_interval(share, count):
            assert (end - share) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / count, abs=1e-9)
    assert wilson_interval(0.0, 20)[0] == 0 and wilson_interval(1.0, 20)[1] == 1


def test_a_k_that_reaches_the_gallery_is_no_success():
    small = results(sizes=(15, 60))
    small["galleries"]["15"]["items"], small["galleries"]["60"]["items"] = 20, 70
    lines = results_table(small).splitlines()
    first = next(line for line in lines if line.startswith("       15"))
    assert first.split()[-2:] == ["-", "-"] and first.count("±") == 3
    assert "-: a gallery has at most K items, so that every query would succeed" in lines
    restricted = small | {"restrict_to_category": True}
    restricted["galleries"]["60"]["items_by_category"] = {"Bags": 7.5, "Feet": 9}
    restricted["galleries"]["15"]["items_by_category"] = {"Bags": 2, "Feet": 3}
    lines = results_table(restricted).splitlines()
    assert next(line for line in lines if line.startswith("       60")).count("±") == 2
    assert "       60   Bags 7.5, Feet 9" in lines


def test_a_published_protocol_says_what_is_not_as_published():
    own = results() | {"protocol": "leaderboard", "compute_dtype": "bfloat16"}
    table = results_table(own)
    assert "products drawn here, which are not the published draws" in table
    assert "in bfloat16, where the published scores are of float32" in table
    published = own | {"compute_dtype": "float32", "product_folds": "a.pt", "missing_draws": {"products": 0}}
    assert "published" not in results_table(published)
