"""Standing: where a score stands among those of scenes whose thing is not in the catalog, and what is not close."""

import json

import numpy as np
import pytest
import torch
from made import squares, write_csv, write_file, write_test_set
from pairs import pairs_of, unit

from lrvsf.search import calibrate
from lrvsf.search.catalog import NEAR, Catalog
from lrvsf.search.index import VectorIndex
from lrvsf.search.vectors import Vectors
from lrvsf.search.verdicts import presence, standing
from lrvsf.search.verdicts.standing import KnownPairs, Scale, chosen_pairs

DIM = 24


@pytest.mark.parametrize("removed", [(), ("p0", "p5")])
def test_a_scale_is_the_naive_one(shop, model, step, removed):
    """Vectors of a catalog are replaced by random ones: 20 products of three photos, some of which scenes show."""
    rows = [(f"p{number // 3}", f"{number % 8}.jpg") for number in range(60)]
    step("index", model, write_csv(shop / "many.csv", rows, ("product_id", "image")), shop / "many")
    if removed:
        step("remove", shop / "many", *removed)
    catalog, draws = Catalog.open(shop / "many"), np.random.default_rng(1)
    items = torch.from_numpy(unit(draws.normal(size=(60, DIM)))).half()
    catalog.index = VectorIndex.build(Vectors([items[:7], items[7:]]))
    scenes, products = unit(draws.normal(size=(2, 40, DIM)))
    scenes[:20] = unit(items[20:40].double().numpy() + 0.5 * scenes[:20])  # what is nearest is often their own
    products[:20] = items[20:40]
    catalog.known_pairs = pairs_of(catalog, scenes, products)
    exact = unit(items.double().numpy())
    left = [row for row in range(60) if rows[row][0] not in removed]
    best, true = [], []
    for scene, product in zip(*catalog.known_pairs.under("Bags"), strict=True):
        own = {rows[row][0] for row in left if exact[row] @ product >= NEAR}
        best.append(max(exact[row] @ scene for row in left if rows[row][0] not in own))
        true.append(scene @ product)
    scale = catalog.scale("Bags")
    np.testing.assert_allclose(scale.missing, np.sort(best), atol=1e-6)
    assert scale.floor == pytest.approx(Scale.of(np.array(best), np.array(true)).floor)
    assert scale is catalog.scale("Bags"), "it is measured once"
    assert catalog.scale("Feet") is None and catalog.scale(None) is None


def test_standing_by_hand():
    scale = Scale(np.array([0.1, 0.2, 0.2, 0.5]), floor=0.3)
    np.testing.assert_array_equal(scale.standing([0.05, 0.2, 0.3, 0.9]), [0, 0.25, 0.75, 1])


def test_the_floor_tells_best_what_is_there_from_what_is_missing():
    draws = np.random.default_rng(3)
    missing, true = draws.normal(0.5, 0.1, 200), draws.normal(0.8, 0.1, 200)
    found = np.maximum(missing, true)

    def gain(cut):
        return (found >= cut).mean() - (missing >= cut).mean()

    assert gain(Scale.of(missing, true).floor) == pytest.approx(max(map(gain, found)))


def test_among_near_misses_four_of_five_finds_stay_close():
    draws = np.random.default_rng(4)
    missing, true = draws.normal(0.9, 0.02, 200), draws.normal(0.6, 0.1, 200)
    true[:60] = 0.98  # alone these would make the best floor
    assert (np.maximum(missing, true) >= Scale.of(missing, true).floor).mean() == pytest.approx(0.8)


def test_few_scenes_give_no_scale():
    missing = np.append(np.full(presence.FEWEST - 1, 0.5), np.full(5, -np.inf))  # five found their own thing alone
    assert Scale.of(missing, missing) is None
    assert Scale.of(np.append(missing, 0.5), np.append(missing, 0.5)).missing.shape == (presence.FEWEST,)


def test_pairs_are_drawn_of_each_condition(monkeypatch):
    monkeypatch.setattr(standing, "PAIRS", 5)
    asked = np.array([0, 2] * 30 + [1] * 3)
    chosen = chosen_pairs(asked, 4)
    assert np.bincount(asked[chosen], minlength=4).tolist() == [5, 3, 5, 0]
    assert (np.diff(chosen) > 0).all() and (chosen == chosen_pairs(asked, 4)).all()


def test_hits_stand_among_what_is_found_where_the_thing_is_missing(calibrated):
    catalog = calibrated(true=0.1)
    hits = catalog.search(squares(3), "Bags", k=8)
    scale = catalog.scale("Bags")
    assert [hit.standing for hit in hits] == [(scale.missing < hit.score).mean() for hit in hits]
    assert [hit.close for hit in hits] == [hit.score >= scale.floor for hit in hits]
    for others in (catalog.search(squares(3)), catalog.search(squares(3), "Feet"), catalog.like(3)):
        assert {(hit.standing, hit.close) for hit in others} == {(None, None)}
    bags, none = catalog.search(squares(3), ["Bags", None], k=8)
    assert [hit.standing for hit in bags] == [hit.standing for hit in hits] and none[0].standing is None
    filtered = catalog.search(squares(3), "Bags", where="price < 30")
    by_id = {hit.id: hit.standing for hit in hits}
    assert [hit.standing for hit in filtered] == [by_id[hit.id] for hit in filtered], "on the whole catalog's scale"
    answers = catalog.search_all(squares(3), k=2)
    assert answers["Bags"].close is hits[0].close and answers["Feet"].close is None


def test_no_close_match_is_said_in_table_sheet_and_json(calibrated, own_shop, step, capsys, tmp_path):
    calibrated(true=1.0)
    write_file(own_shop / "asked.jpg", squares(90))
    asked = ["query", own_shop / "catalog", "--image", own_shop / "asked.jpg", "--category", "Bags", "--k", 3]
    step(*asked, "--html", tmp_path / "sheet.html")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Bags" and lines[2] == "no close match:" and len(lines[3:6]) == 3
    page = (tmp_path / "sheet.html").read_text()
    assert "<small>no close match</small>" in page and page.count('class="hit far"') == 3
    step(*asked, "--json")
    (answer,) = json.loads(capsys.readouterr().out)
    assert [hit["close"] for hit in answer["hits"]] == [False] * 3
    assert all(0 <= hit["standing"] <= 1 for hit in answer["hits"])


def test_the_line_stands_above_what_is_far(calibrated, own_shop, step, capsys, monkeypatch):
    catalog = calibrated(true=0.1)
    scores = [hit.score for hit in catalog.search(squares(3), "Bags", k=8)]
    scale = Scale(np.array(scores[2:3]), floor=(scores[1] + scores[2]) / 2)
    monkeypatch.setattr(Catalog, "scale", lambda self, condition: scale)
    step("query", own_shop / "catalog", "--image", own_shop / "3.jpg", "--category", "Bags", "--k", 4)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "no", "3", "4"]


def test_calibrate_keeps_pairs_as_the_model_embeds_them(own_shop, step, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(presence, "FEWEST", 8)
    monkeypatch.setattr(calibrate, "FEWEST", 8)
    scenes = write_test_set(tmp_path / "scenes", 30, bad={"COMPLEX_IMG": {4: b"none"}, "SIMPLE_IMG": {6: b"none"}})
    step("calibrate", own_shop / "tiny", scenes)
    assert "pairs kept" in capsys.readouterr().out
    catalog, found = Catalog.open(own_shop / "catalog"), KnownPairs.load(own_shop / "tiny")
    assert found.model == catalog.generation.manifest["model"]["digest"] and len(found.asked) == 28
    kept = [number for number in range(30) if number not in (4, 6)]
    assert [found.conditions[place] for place in found.asked] == [("Bags", "Feet", "Neck")[n % 3] for n in kept]
    place = kept.index(11)
    np.testing.assert_allclose(found.products[place], catalog.embed([squares(11, quality=95)])[0], atol=2e-3)
    scene = catalog.embed([squares(1011, quality=95)], ["Neck"])[0]
    np.testing.assert_allclose(found.scenes[place], scene, atol=2e-3)


def test_another_models_pairs_are_not_taken(calibrated, own_shop):
    found = calibrated(true=0.1).known_pairs
    KnownPairs(found.conditions, "another", found.asked, found.scenes, found.products).save(own_shop / "tiny")
    assert Catalog.open(own_shop / "catalog").search(squares(3), "Bags")[0].standing is None


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 100])
def test_a_damaged_file_is_refused_in_a_line(calibrated, own_shop, damage):
    calibrated(true=0.1)
    path = own_shop / "tiny" / standing.FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="standing.safetensors is damaged .* Calibrate again"):
        Catalog.open(own_shop / "catalog").search(squares(3), "Bags")


@pytest.mark.parametrize(
    "wrong",
    [
        {"asked": np.zeros(3, np.int64)},
        {"asked": np.full(25, 99)},
        {"scenes": np.zeros((25, 4), np.float16)},
        {"products": np.zeros((25, 16), np.float32)},
    ],
)
def test_a_file_that_cannot_be_is_refused(tmp_path, wrong):
    rows = np.zeros((25, 16), np.float16)
    good = {"asked": np.zeros(25, np.int64), "scenes": rows, "products": rows.copy()}
    KnownPairs(("Bags", "Feet"), "digest", **(good | wrong)).save(tmp_path)
    with pytest.raises(ValueError, match="is damaged"):
        KnownPairs.load(tmp_path)
    KnownPairs(("Bags", "Feet"), "digest", **good).save(tmp_path)
    assert KnownPairs.load(tmp_path).under("Feet")[0].shape == (0, 16)
