"""Presence: what scenes of one known category each teach of the categories that nobody wrote down."""

import numpy as np
import pytest

from lrvsf.search.verdicts import presence
from lrvsf.search.verdicts.presence import Presence, features

CONDITIONS = ["Bags", "Feet", "Head"]


def world(count, seed, dim=16):
    """Pictures that show each of three things or not; a thing that is there moves its condition's embedding.

    Returns: conditioned (N, 3, D), plain (N, D), shown (N, 3) bool, asked (N,), one of those shown.
    """
    rng = np.random.default_rng(seed)
    shown = rng.random((count, 3)) < 0.5
    shown[np.arange(count), rng.integers(3, size=count)] = True
    plain = rng.normal(size=(count, dim))
    own = np.eye(dim)[:3]
    moved = plain[:, None] + shown[..., None] * (3 * own + rng.normal(size=(count, 3, dim)))
    asked = np.array([rng.choice(np.flatnonzero(row)) for row in shown])

    def unit(rows):
        return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)

    return unit(moved), unit(plain), shown, asked


@pytest.fixture(scope="module")
def fitted():
    conditioned, plain, _, asked = world(600, seed=0)
    return Presence.fit(CONDITIONS, "digest", conditioned, plain, asked)


def test_what_no_scene_was_labelled_with_is_told_all_the_same(fitted):
    conditioned, plain, shown, _ = world(400, seed=1)
    told = fitted.probability(conditioned, plain) >= 0.5
    assert told[shown].mean() > 0.75 and (~told)[~shown].mean() > 0.75  # by chance their sum is 1


def test_the_threshold_is_youdens_of_full_labels():
    rng = np.random.default_rng(2)
    shown = rng.random(5000) < 0.3
    logits = rng.normal(size=5000) + 2 * shown
    known = shown & (rng.random(5000) < 0.2)  # a fifth of those that show it is known to

    def youden(cut):
        return (logits[shown] >= cut).mean() - (logits[~shown] >= cut).mean()

    found = presence._threshold(logits, known)
    assert youden(found) > max(youden(cut) for cut in logits[:500]) - 0.03


def test_features_by_hand():
    conditioned = np.array([[[1.0, 0.0], [0.6, 0.8]]], np.float32)
    plain = np.array([[0.0, 1.0]], np.float32)
    expected = [[1, 0, 0, 0.6, 0], [0.6, 0.8, 0.6, 0, 0.8]]  # the embedding, cosines with the others, with the plain
    np.testing.assert_allclose(features(conditioned, plain)[0], expected, atol=1e-6)


def test_a_condition_with_few_scenes_has_no_verdict():
    conditioned, plain, _, asked = world(400, seed=3)
    rare = np.flatnonzero(asked == 2)[presence.FEWEST - 1 :]
    keep = np.delete(np.arange(400), rare)
    found = Presence.fit(CONDITIONS, "digest", conditioned[keep], plain[keep], asked[keep])
    told = found.probability(conditioned, plain)
    assert np.isnan(told[:, 2]).all() and np.isfinite(told[:, :2]).all()
    with pytest.raises(ValueError, match="No category has 20 scenes"):
        Presence.fit(CONDITIONS, "digest", conditioned[:6], plain[:6], asked[:6])


def test_verdicts_do_not_depend_on_the_pictures_beside(fitted):
    conditioned, plain, _, _ = world(50, seed=4)
    together = fitted.probability(conditioned, plain)
    alone = np.concatenate([fitted.probability(conditioned[i : i + 1], plain[i : i + 1]) for i in range(50)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_saved_and_loaded(fitted, tmp_path):
    assert Presence.load(tmp_path) is None
    fitted.save(tmp_path)
    found = Presence.load(tmp_path)
    assert (found.conditions, found.model, found.scenes) == (tuple(CONDITIONS), "digest", fitted.scenes)
    assert (found.weights == fitted.weights).all() and (found.bias == fitted.bias).all()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 100])
def test_a_damaged_file_is_refused(fitted, tmp_path, damage):
    fitted.save(tmp_path)
    path = tmp_path / presence.FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="is damaged"):
        Presence.load(tmp_path)
