"""The processor: exact pixels, category names to numbers, and errors that teach."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from processing_condvit import IMAGE_MEAN, IMAGE_STD, CondViTProcessor, pad_and_resize, to_pixel_values

GOLDEN = Path(__file__).parent / "golden" / "preprocess"
NAMES = sorted(path.name.removesuffix(".in.png") for path in GOLDEN.glob("*.in.png"))


def test_golden_images_are_there() -> None:
    assert len(NAMES) == 9


@pytest.mark.parametrize("name", NAMES)
def test_pixels_equal_the_published_transform(name: str) -> None:
    source, expected = Image.open(GOLDEN / f"{name}.in.png"), Image.open(GOLDEN / f"{name}.out.png")
    assert np.array_equal(pad_and_resize(source, 224), expected)
    assert np.array_equal(pad_and_resize(source.convert("RGB"), 224), expected)

    pixel_values = CondViTProcessor()(source, return_tensors="np")["pixel_values"]
    summary = json.loads((GOLDEN / "summary.json").read_text())[name]
    assert pixel_values.astype(np.float64).mean() == pytest.approx(summary["pixel_values_mean"], abs=1e-5)
    assert pixel_values.astype(np.float64).std(ddof=1) == pytest.approx(summary["pixel_values_std"], abs=1e-5)


def test_padding_is_white_and_centred() -> None:
    black = Image.new("RGB", (4, 1))
    rows = np.asarray(pad_and_resize(black, 4))[:, :, 0]
    assert rows.tolist() == [[255] * 4, [0] * 4, [255] * 4, [255] * 4]  # 3 white rows: 1 above, 2 below


def test_pixel_values_by_hand() -> None:
    image = np.array([[[0, 255, 51]]], dtype=np.uint8)  # one pixel
    expected = [(value - mean) / std for value, mean, std in zip((0, 1, 0.2), IMAGE_MEAN, IMAGE_STD, strict=True)]
    assert to_pixel_values(image).ravel() == pytest.approx(expected, abs=1e-6)
    assert to_pixel_values(image).dtype == np.float32


def test_shapes_and_types(make_image: Callable[..., Image.Image]) -> None:
    processor = CondViTProcessor(size=32)
    batch = processor([make_image(40, 30), make_image(7, 50)], ["Feet", "Bags"], return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["category_indices"].tolist() == [1, 0]
    assert batch["category_indices"].dtype == torch.int64

    single = processor(make_image(40, 30), "Waist", return_tensors="pt")
    assert single["pixel_values"].shape == (1, 3, 32, 32)
    assert single["category_indices"].tolist() == [8]

    assert set(processor(make_image(40, 30), return_tensors="np")) == {"pixel_values"}


def test_inputs_of_every_kind_give_the_same_pixels(make_image: Callable[..., Image.Image], tmp_path: Path) -> None:
    processor, image = CondViTProcessor(size=32), make_image(40, 30)
    array = np.asarray(image)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    image.save(tmp_path / "image.png")
    for same in (array, array.transpose(2, 0, 1), [array], array[None], torch.from_numpy(array.copy()), array / 255):
        assert torch.equal(processor(same, return_tensors="pt")["pixel_values"], expected)
    assert torch.equal(processor(str(tmp_path / "image.png"), return_tensors="pt")["pixel_values"], expected)


def test_gray_arrays() -> None:
    processor, gray = CondViTProcessor(size=8), np.arange(35, dtype=np.uint8).reshape(5, 7, 1)
    expected = processor(np.concatenate([gray] * 3, axis=-1), return_tensors="np")["pixel_values"]
    assert np.array_equal(processor(gray, return_tensors="np")["pixel_values"], expected)
    assert np.array_equal(processor(Image.fromarray(gray[..., 0]), return_tensors="np")["pixel_values"], expected)


def test_size_mean_and_std_of_one_call(make_image: Callable[..., Image.Image]) -> None:
    processor, image = CondViTProcessor(size=32), make_image(40, 30)
    batch = processor(image, size=16, image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 1.0, 1.0), return_tensors="np")
    expected = np.asarray(pad_and_resize(image, 16), np.float32).transpose(2, 0, 1) / np.float32(255)
    assert np.array_equal(batch["pixel_values"][0], expected)
    assert processor.size["height"] == 32


def test_saved_and_loaded(make_image: Callable[..., Image.Image], tmp_path: Path) -> None:
    CondViTProcessor(categories=["Mugs", "Pots"], size=48).save_pretrained(tmp_path)
    loaded = CondViTProcessor.from_pretrained(tmp_path)
    batch = loaded(make_image(9, 9), "Pots", return_tensors="pt")
    assert batch["pixel_values"].shape[-2:] == (48, 48)
    assert batch["category_indices"].tolist() == [1]


def test_survives_pickling(make_image: Callable[..., Image.Image]) -> None:
    """Data loaders that spawn their workers send it to them."""
    processor, image = CondViTProcessor(categories=["Mugs"], size=32), make_image(20, 10)
    copy = pickle.loads(pickle.dumps(processor))
    assert np.array_equal(copy(image)["pixel_values"][0], processor(image)["pixel_values"][0])
    assert copy.categories == ["Mugs"]


def test_errors(make_image: Callable[..., Image.Image]) -> None:
    processor, image = CondViTProcessor(categories=["Mugs", "Pots"], size=32), make_image(20, 10)
    with pytest.raises(ValueError, match=r"'Cups'.*'Mugs', 'Pots'"):
        processor(image, "Cups")
    with pytest.raises(ValueError, match=r"3 images and 2 categories"):
        processor([image] * 3, ["Mugs", "Pots"])
    with pytest.raises(ValueError, match="not a square"):
        processor(image, size={"height": 32, "width": 16})
    with pytest.raises(ValueError, match="not a square"):
        processor(image, size={"shortest_edge": 32})
