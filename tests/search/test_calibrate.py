"""calibrate: a test set's scenes teach a model's folder what presence looks like, and every catalog of it tells."""

import json
import shutil

import numpy as np
import pytest
from made import squares, tiny_condvit, write_test_set

from lrvsf.data.images import TooMuchDamage
from lrvsf.search import calibrate
from lrvsf.search.catalog import Catalog
from lrvsf.search.verdicts import presence
from lrvsf.search.verdicts.presence import Presence


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch):
    monkeypatch.setattr(presence, "FEWEST", 8)
    monkeypatch.setattr(calibrate, "FEWEST", 8)


def test_a_catalog_tells_presence_once_its_model_is_calibrated(own_shop, step, tmp_path, capsys):
    before = Catalog.open(own_shop / "catalog").search_all(squares(1))
    assert {(answer.present, answer.presence) for answer in before.values()} == {(None, None)}
    step("calibrate", own_shop / "tiny", write_test_set(tmp_path / "scenes", 30))
    assert "Bags" in capsys.readouterr().out
    catalog = Catalog.open(own_shop / "catalog")
    told = catalog.search_all(squares(1), k=3)
    asked_about = {"Bags", "Feet", "Neck"}  # the others have no scenes, and no verdict
    assert {name for name, answer in told.items() if answer.presence is not None} == asked_about
    rows = catalog.embed([squares(1)], [*catalog.conditions, None])
    expected = Presence.load(own_shop / "tiny").probability(rows[None, :-1], rows[-1:])[0]
    for name, likely in zip(catalog.conditions, expected, strict=True):
        if name in asked_about:
            assert told[name].presence == pytest.approx(likely) and told[name].present == (likely >= 0.5)
        assert [hit.id for hit in told[name].hits] == [hit.id for hit in before[name].hits[:3]]
    step("query", own_shop / "catalog", "--image", own_shop / "1.jpg", "--all", "--json")
    printed = {one["condition"]: one for one in json.loads(capsys.readouterr().out)}
    assert printed["Bags"]["present"] == told["Bags"].present and "present" not in printed["Head"]


def test_scenes_are_embedded_under_all_conditions_and_bad_ones_are_counted(own_shop, tmp_path, step, capsys):
    with pytest.raises(TooMuchDamage):
        bad = dict.fromkeys(range(0, 60, 2), b"none")
        step("calibrate", own_shop / "tiny", write_test_set(tmp_path / "damaged", 60, bad={"COMPLEX_IMG": bad}))
    assert Presence.load(own_shop / "tiny") is None
    step("calibrate", own_shop / "tiny", write_test_set(tmp_path / "scenes", 30, bad={"COMPLEX_IMG": {4: b"none"}}))
    assert Presence.load(own_shop / "tiny").scenes[:2] == (10, 9) and "unreadable" in capsys.readouterr().out


def test_another_models_calibration_is_not_taken(own_shop, step, tmp_path):
    other = tiny_condvit(intermediate_size=24)
    other.save_pretrained(tmp_path / "other")
    step("calibrate", tmp_path / "other", write_test_set(tmp_path / "scenes", 30))
    shutil.copy(tmp_path / "other" / presence.FILE, own_shop / "tiny")
    assert Catalog.open(own_shop / "catalog").presence is None


def test_what_cannot_be_calibrated_is_refused(own_shop, step, tmp_path):
    scenes = write_test_set(tmp_path / "scenes", 30)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        step("calibrate", "somebody/model", scenes)
    tiny_condvit(condition="none").save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="has no conditions"):
        step("calibrate", tmp_path / "plain", scenes)
    with pytest.raises(ValueError, match="No category has 8 scenes"):
        step("calibrate", own_shop / "tiny", write_test_set(tmp_path / "few", 6))


def test_features_are_those_of_single_pictures(own_shop, tmp_path):
    from lrvsf.data.images import Tolerance
    from lrvsf.data.testset import ProductTestSet
    from lrvsf.search.own_model import load_encoder

    encoder = load_encoder(str(own_shop / "tiny"), None, "cpu", conditioned=True)
    test_set = ProductTestSet(write_test_set(tmp_path / "scenes", 20))
    known = list(encoder.model.config.categories)
    conditioned, plain, asked, rows = calibrate.embed_scenes(encoder, test_set, known, Tolerance())
    assert (conditioned.shape[:2], plain.shape[0], rows.tolist()) == ((20, len(known)), 20, list(range(20)))
    product = next(test_set.products(17, 18))
    alone = encoder.embed([encoder.pixels(product.query_image)], [known[3]]).numpy()[0]
    np.testing.assert_allclose(conditioned[17, 3], alone, atol=1e-5)
    assert known[asked[17]] == product.category
