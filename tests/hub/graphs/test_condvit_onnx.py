"""What CondViTOnnx refuses: whatever the model would refuse, and what bytes cannot hold."""

import numpy as np
import pytest
from one_layer import CATEGORY, TEXT, one_layer

pytest.importorskip("onnxscript", reason="no onnx here: pip install -r requirements-onnx.txt")

import publish_lrvsf
from lrvsf.hub.graphs.condvit_onnx import CondViTOnnx

PIXELS = np.zeros((2, 3, 32, 32), np.uint8)


@pytest.fixture(scope="module")
def models(tiny_folder, tmp_path_factory):
    """A category model and a text model."""
    folders = [tmp_path_factory.mktemp("out") for _ in range(2)]
    for folder, config in zip(folders, (CATEGORY, TEXT), strict=True):
        publish_lrvsf.main(["onnx", str(tiny_folder(**config)), str(folder)])
    return [CondViTOnnx(folder / "onnx") for folder in folders]


@pytest.mark.parametrize(
    "given, told",
    [
        ({}, "either pixel_values or pixels"),
        ({"pixels": PIXELS, "pixel_values": PIXELS}, "either pixel_values or pixels"),
        ({"pixels": PIXELS[:, :, :31]}, r"\(2, 3, 31, 32\) of uint8. Give \(B, 3, 32, 32\) of uint8"),
        ({"pixels": PIXELS.astype(np.float32)}, "of float32. Give"),
        ({"pixel_values": PIXELS}, "of uint8. Give .* of float32"),
        ({"pixel_values": np.full(PIXELS.shape, 0.123, np.float32)}, "are not normalised bytes"),
        ({"pixel_values": np.full(PIXELS.shape, 9.0, np.float32)}, "are not normalised bytes"),
        ({"pixel_values": np.full(PIXELS.shape, np.nan, np.float32)}, "are not normalised bytes"),
        ({"pixels": PIXELS, "category_indices": [0]}, "category_indices has 1 rows, but there are 2 images"),
        ({"pixels": PIXELS, "text_embeds": np.zeros((2, 24))}, "condition='category'. Call it without a text"),
        ({"pixels": PIXELS, "input_ids": [[1]]}, "reads no tokens"),
        ({"pixels": PIXELS, "category_indices": [0, 1], "text_embeds": np.zeros((2, 24))}, "Give one of them"),
    ],
)
def test_what_is_wrong_is_refused(models, given, told):
    with pytest.raises(ValueError, match=told):
        models[0](**given)


@pytest.mark.parametrize("index", [-1, 10])
def test_an_unknown_category_is_named(models, index):
    with pytest.raises(IndexError, match=rf"\[{index}\]. The categories are 0 to 9"):
        models[0](pixels=PIXELS, category_indices=[0, index])


def test_a_text_model_is_asked_by_its_categories_too(models):
    text = models[1]
    table = one_layer(**TEXT).category_text_embeds.numpy()
    found = text(pixels=PIXELS, category_indices=[3, 0]).image_embeds
    np.testing.assert_array_equal(found, text(pixels=PIXELS, text_embeds=table[[3, 0]]).image_embeds)
    with pytest.raises(ValueError, match="not finite"):
        text(pixels=PIXELS, text_embeds=np.full((2, 24), np.inf))


def test_graphs_that_are_not_there_are_named(models, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gallery_int8.onnx. Write it by publish_lrvsf.py onnx"):
        CondViTOnnx(models[0].folder, int8=True)
