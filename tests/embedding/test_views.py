"""Views by their names, against pixels that are cut by hand, and their mean against a loop."""

import io

import numpy as np
import pytest
import torch
from made import noise
from PIL import Image

from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.parts import QueryViews
from lrvsf.embedding.pipeline import embed_share
from lrvsf.embedding.views import FLIP, ONCE, WHOLE, View, averaged, each_asked, names_of, read_views
from processing_condvit import CondViTProcessor


@pytest.mark.parametrize(
    "asked, names",
    [
        (None, "whole"),
        ("whole", "whole"),
        ("center1", "whole"),
        ("flip", "flip"),
        ("center0.80", "center0.8"),
        (" flip,center.5, whole ", "whole,center0.5,flip"),
        ("center0.6,flip,center0.8", "center0.8,center0.6,flip"),
        ("center1e-5", "center1e-05"),
    ],
)
def test_views_are_read_in_one_order(asked, names):
    views = read_views(asked)
    assert names_of(views) == names and read_views(names) == views
    assert (views == ONCE) == (names == "whole")


@pytest.mark.survives("views of a query that there are not", "one line with the value and what there is")
@pytest.mark.parametrize(
    "asked, told",
    [
        ("", "query_views='' lacks a view; name one or several of whole, center0.8"),
        (" ", "lacks a view"),
        ("whole,", "query_views='whole,' lacks a view"),
        ("flop", "there is no view 'flop'; there are whole, center0.8 .* and flip. Did you mean 'flip'"),
        ("centre0.8", "Did you mean 'center0.8'"),
        ("Whole", "Did you mean 'whole'"),
        ("whole;flip", "there is no view 'whole;flip'"),
        ("centernan", "there is no view 'centernan'"),
        ("center", "'center' names no share of each side above 0 and up to 1; write it as center0.8"),
        ("center0", "'center0' names no share"),
        ("center-0.5", "'center-0.5' names no share"),
        ("center1.01", "'center1.01' names no share"),
        ("center0.8px", "'center0.8px' names no share"),
        ("center80%", "'center80%' names no share"),
        ("whole,flip,flip", "query_views='whole,flip,flip' has a view twice, then as 'flip'; name each once"),
        ("center0.8,whole,center0.80", "has a view twice, then as 'center0.80'"),
        ("whole,center1.0", "has a view twice, then as 'center1.0'"),
    ],
)
def test_what_is_no_view_is_one_line(asked, told):
    with pytest.raises(ValueError, match=told) as refused:
        read_views(asked)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("width, height", [(40, 30), (31, 17), (3, 50), (1, 1)])
@pytest.mark.parametrize("share", [1.0, 0.8, 0.33, 0.01])
def test_a_view_is_what_is_cut_by_hand(width, height, share):
    image = noise(width, height)
    pixels = np.asarray(image)
    kept = [max(1, round(share * side)) for side in (height, width)]
    top, left = (side - keep for side, keep in zip((height, width), kept, strict=True))
    rows, columns = (slice(over // 2, over // 2 + keep) for over, keep in zip((top, left), kept, strict=True))
    np.testing.assert_array_equal(View(share).of(image), pixels[rows, columns])
    np.testing.assert_array_equal(FLIP.of(image), pixels[:, ::-1])
    assert WHOLE.of(image) is image


def test_the_mean_of_views_is_that_of_a_loop():
    rows = np.random.default_rng(0).normal(size=(5, 3, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    for views, mean in zip(rows, averaged(rows), strict=True):
        total = sum(view.astype(np.float64) for view in views)
        np.testing.assert_allclose(mean, total / np.linalg.norm(total), atol=1e-6)
    assert averaged(rows).dtype == np.float32
    np.testing.assert_array_equal(averaged(rows[:, :1]), rows[:, 0])  # every bit of it
    assert averaged(np.empty((0, 3, 8), np.float32)).shape == (0, 8)


def test_every_view_is_asked_under_every_condition():
    looks, conditions = each_asked([["a", "a'"], ["b", "b'"]], ["Bags", None, "Feet"])
    assert looks == ["a", "a'"] * 3 + ["b", "b'"] * 3
    assert conditions == ["Bags", "Bags", None, None, "Feet", "Feet"] * 2
    assert each_asked([], ["Bags"]) == each_asked([["a"]], []) == ([], [])


def seen_twice(model, product, conditioned):
    """The naive twin: a query's middle and its mirror image, each through the processor, and their mean."""
    image = Image.open(io.BytesIO(product.query_image)).convert("RGB")
    width, height = image.size
    across, down = round(0.8 * width), round(0.8 * height)
    left, top = (width - across) // 2, (height - down) // 2
    middle = image.crop((left, top, left + across, top + down))
    mirrored = Image.fromarray(np.ascontiguousarray(np.asarray(image)[:, ::-1]))
    processor = CondViTProcessor(model.config.categories, size=model.config.image_size)
    with torch.no_grad():
        rows = [
            model(**processor(one, product.category if conditioned else None, return_tensors="pt")).image_embeds[0]
            for one in (image, middle, mirrored)
        ]
    total = sum(rows)
    return total / total.norm()


@pytest.mark.parametrize("conditioning", ["category", "none"])
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_queries_of_a_test_set_by_their_views(make_test_set, tiny_model, conditioning, batch_size):
    test_set = ProductTestSet(make_test_set(products=7, distractors=1, bad={"COMPLEX_IMG": {2: b"broken"}}))
    part = QueryViews(test_set, read_views("whole,center0.8,flip"))
    found = embed_share(Encoder(tiny_model, conditioning), part, batch_size)
    products = [product for product in test_set.products() if product.row != 2]
    naive = torch.stack([seen_twice(tiny_model, product, conditioning == "category") for product in products])
    torch.testing.assert_close(found.embeds["query"], naive, rtol=0, atol=1e-5)
    assert found.rows == [0, 1, 3, 4, 5, 6] and found.bad == [(2, "not an image")]


def test_a_forward_pass_has_no_more_pictures_than_without_views(make_test_set, tiny_model, monkeypatch):
    sizes, plain = [], Encoder.embed
    monkeypatch.setattr(Encoder, "embed", lambda *args: sizes.append(len(args[1])) or plain(*args))
    test_set = ProductTestSet(make_test_set(products=7, distractors=1))
    embed_share(Encoder(tiny_model, "category"), QueryViews(test_set, read_views("whole,flip")), 4)
    assert sizes == [4, 4, 3, 3]
