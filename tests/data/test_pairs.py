import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from made import noise, plain, product, row_image
from PIL import Image

from lrvsf.data.images import BadImageCounter, Tolerance, TooMuchDamage
from lrvsf.data.pairs import PairMaker, augment, count_images, draws_of, picture_numbers, random_box


def test_a_pair_depends_on_seed_epoch_and_product_alone():
    row, other = product("a", scene="red"), product("b", scene="red")
    batch = PairMaker(16, None, 0).batch(0, [row, other], [])
    alone = PairMaker(16, None, 0).batch(0, [other], [])
    assert torch.equal(batch["pixel_values"][1], alone["pixel_values"][0])
    assert draws_of(0, 0, "a").random() != draws_of(0, 1, "a").random() != draws_of(1, 0, "a").random()
    assert "category_indices" not in batch


def test_augment_keeps_most_of_the_image_and_mirrors_half():
    picture = Image.new("RGB", (40, 40), "black")
    picture.paste("white", (20, 0, 40, 40))
    views = [augment(picture, 32, np.random.default_rng(i))[0].numpy() / 255 for i in range(60)]
    right = sum(view[:, 24:].mean() > 0.9 for view in views)
    left = sum(view[:, :8].mean() > 0.9 for view in views)
    assert right + left == 60 and 15 < right < 45
    wide = augment(Image.new("RGB", (40, 10)), 32, np.random.default_rng(0))
    assert wide.shape == (3, 32, 32) and wide[:, 0].min() == 255 and wide[:, 16].max() == 0, "padded to a white square"


def test_augment_scales_as_pillow_does():
    """The naive twin: pad, crop, resize, mirror with Pillow."""
    picture = noise(60, 50).resize((120, 100), Image.Resampling.BICUBIC)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        view = augment(picture, 32, rng)
        rng = np.random.default_rng(seed)
        for _ in range(10):
            area, ratio = rng.uniform(0.8, 1.0) * 120**2, np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if max(width, height) <= 120:
                left, top = rng.integers(120 - width + 1), rng.integers(120 - height + 1)
                break
        else:
            left, top, width, height = 0, 0, 120, 120
        square = Image.new("RGB", (120, 120), "white")
        square.paste(picture, (0, 10))
        expected = square.crop((left, top, left + width, top + height)).resize((32, 32), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert np.abs(view.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected, int)).max() <= 1


def test_boxes_are_distributed_as_published():
    """Against closed forms: the area a is uniform in 0.8..1 and the log aspect in ±log(4/3); a box fits while the
    latter is within ±log(1/a), with the density -log(a) in a. Ten boxes that do not fit give the whole square."""
    side, n, log = 1000, 20_000, math.log
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(side, rng, (0.8, 1.0)) for _ in range(n)])
    left, top, width, height = boxes.T
    assert boxes.min() >= 0 and (left + width).max() <= side and (top + height).max() <= side
    area, aspect = width * height / side**2, np.log(width / height)
    assert area.min() > 0.8 - 1.1 / side, "but for rounding to whole pixels"
    fits = 0.2 + 0.8 * log(0.8)  # the integral of -log(a) from 0.8 to 1
    fails = (1 - fits / (0.2 * log(4 / 3))) ** 10
    assert (area == 1).mean() == pytest.approx(fails, abs=4 * (fails / n) ** 0.5)
    mean_area = (1 / 4 - 0.16 + 0.32 * log(0.8)) / fits  # the integral of -a log(a), likewise
    assert area.mean() == pytest.approx(mean_area + (1 - mean_area) * fails, abs=4 * area.std() / n**0.5)
    mean_aspect = (0.4 - 0.8 * log(0.8) ** 2 + 1.6 * log(0.8)) / 2 / fits * (1 - fails)  # the half of that of log(a)^2
    assert abs(aspect).mean() == pytest.approx(mean_aspect, abs=4 * aspect.std() / n**0.5)
    assert abs(aspect.mean()) < 4 * aspect.std() / n**0.5
    slack = side - width > 0
    places = (left / np.maximum(side - width, 1))[slack]
    assert places.mean() == pytest.approx(0.5, abs=4 * places.std() / n**0.5)


@pytest.mark.parametrize("side", [1, 2, 3, 7])
def test_a_tiny_square_has_boxes_too(side):
    rng = np.random.default_rng(0)
    for left, top, width, height in (random_box(side, rng, (0.8, 1.0)) for _ in range(200)):
        assert left >= 0 and top >= 0 and 1 <= width <= side - left and 1 <= height <= side - top


@pytest.mark.survives("no image of a product can be read", "another product takes its place; ranks stay equal")
def test_a_bad_image_is_skipped_counted_and_replaced(caplog):
    maker = PairMaker(16, ["Bags"], seed=0)
    broken = product("broken", scene=b"<html>gone</html>")
    half = product("half")
    half["images"].insert(0, row_image(b"", "COMPLEX"))
    batch = maker.batch(0, [broken, half, product("good")], [product("spare")])
    assert batch["pixel_values"].shape[0] == 3
    assert batch["product_ids"] == ["spare", "half", "good"]
    bad = {(name, reason) for name, reason in batch["tried"] if reason}
    assert bad >= {("broken", "not an image")} and bad <= {("broken", "not an image"), ("half", "empty")}
    readable = [name for name, reason in batch["tried"] if reason is None]
    assert readable == ["broken", "spare", "spare", "half", "half", "good", "good"]


def test_images_are_counted_over_all_batches_in_their_order():
    maker, counter = PairMaker(16, ["Bags"], seed=0), BadImageCounter(tolerance=Tolerance(in_a_row=3))
    broken, empty = (product(name, scene=data) for name, data in (("broken", b"<html>"), ("empty", b"")))
    batch = maker.batch(0, [broken, product("good")], [product("spare")])
    count_images(batch, counter)
    assert (counter.good, counter.bad, counter.in_a_row) == (5, 1, 0) and "tried" not in batch
    unfilled = maker.batch(1, [product("good"), empty, product("better")], [broken])
    assert unfilled["product_ids"] == ["good"] and "pixel_values" not in unfilled
    reasons = r"3 of 12 images are bad:\n +2  not an image\n +1  empty\nonly 1 of a batch of 3 products, with 1 spare"
    with pytest.raises(TooMuchDamage, match=reasons):
        count_images(unfilled, counter)


@pytest.mark.parametrize(("limit", "enough"), [(4, True), (5, False)])
def test_bad_images_in_a_row_end_the_run(limit, enough):
    """The spares of a lost product are lost as well, but for the last."""
    maker, counter = PairMaker(16, None, seed=0), BadImageCounter(tolerance=Tolerance(1, limit))
    lost = [{"product_id": f"row {i}", "images": []} for i in range(5)]
    apart = maker.batch(0, [lost[0], product("a"), product("b")], [product("c")])
    count_images(apart, counter)
    together = maker.batch(0, [product("d"), lost[1], product("e")], [*lost[2:5], product("f")])
    refused = pytest.raises(TooMuchDamage, match="5  lost in a .*\n4 in a row, the last.*row 4.*max_bad_in_a_row")
    with refused if enough else nullcontext():
        count_images(together, counter)


def test_of_several_simple_images_one_of_a_known_category_is_taken():
    row = product("mixed", category=None)
    row["images"] += [row_image(plain("red"), "SIMPLE", "Hovercraft"), None, row_image(plain("blue"), "SIMPLE", "Feet")]
    for epoch in range(8):
        batch = PairMaker(16, ["Bags", "Feet"], 0).batch(epoch, [row], [])
        assert batch["category_indices"].tolist() == [1] and batch["target_pixel_values"][0, 2].max() == 255
        assert batch["target_pixel_values"][0, :2, 8, 8].tolist() == [0, 0], "the blue one"


@pytest.mark.survives("a row with a path and no bytes", "the path is not opened; counted")
def test_a_path_is_never_opened_and_a_lost_row_is_named(tmp_path):
    picture = tmp_path / "secret.png"
    picture.write_bytes(plain("white"))
    pathless = product("pathless")
    pathless["images"][1]["image"] = {"bytes": None, "path": str(picture)}
    empty = product("empty")
    empty["images"][1]["image"] = None
    lost = {"product_id": "row 7: 0.parquet, row group 1", "images": []}
    batch = PairMaker(16, None, 0).batch(0, [pathless, empty, lost], [product("a"), product("b"), product("c")])
    assert batch["product_ids"] == ["a", "b", "c"]
    assert [(name, reason) for name, reason in batch["tried"] if reason] == [
        ("pathless", "a path and no bytes"),
        ("empty", "empty"),
        ("row 7: 0.parquet, row group 1", "lost in a damaged shard"),
    ]


def test_products_are_one_by_a_product_picture_or_by_a_scene_with_one_condition():
    """a and b: one photo, two ids. a and c: one scene, which asks about a bag and a shoe, and so does nothing to c."""
    rows = {
        "a": product("a", "red", plain("blue")),
        "b": product("b", "red", plain("green"), category="Feet"),
        "c": product("c", "white", plain("blue"), category="Feet"),
        "d": {
            "product_id": "d",
            "images": [row_image(plain("blue"), "SIMPLE", "Bags"), row_image(b"", "COMPLEX"), None],
        },
    }

    def shared(one, other, conditions=(0, 0)):
        numbers = (picture_numbers(rows[name], index) for name, index in zip((one, other), conditions, strict=True))
        return set(next(numbers)) & set(next(numbers))

    assert shared("a", "b", (0, 1)) and shared("a", "b", (-1, -1))
    assert shared("a", "c", (0, 0)) and shared("a", "c", (-1, -1)) and not shared("a", "c", (0, 1))
    assert not shared("b", "c", (1, 1))
    assert shared("a", "d", (0, 0)) and not shared("a", "d", (0, 1)), "a scene here, a product picture there"
    assert all(0 < number < 2**63 for number in picture_numbers(rows["a"], 9))
    batch = PairMaker(16, ["Bags", "Feet"], 0).batch(0, list(rows.values())[:3], [])
    assert batch["pictures"].tolist() == [picture_numbers(rows[name], i) for name, i in (("a", 0), ("b", 1), ("c", 1))]
