"""The processor: exact pixels, category names to numbers, and errors that teach."""

import base64
import io
import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from made import noise
from PIL import Image, ImageOps, UnidentifiedImageError

import processing_condvit
from lrvsf.data.images import decode_image
from processing_condvit import IMAGE_MEAN, IMAGE_STD, CondViTProcessor, pad_and_resize, to_pixel_values

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "preprocess"
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


def test_shapes_and_types() -> None:
    processor = CondViTProcessor(size=32)
    batch = processor([noise(40, 30), noise(7, 50)], ["Feet", "Bags"], return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["category_indices"].tolist() == [1, 0]
    assert batch["category_indices"].dtype == torch.int64

    single = processor(noise(40, 30), "Waist", return_tensors="pt")
    assert single["pixel_values"].shape == (1, 3, 32, 32)
    assert single["category_indices"].tolist() == [8]

    assert set(processor(noise(40, 30), return_tensors="np")) == {"pixel_values"}


def test_inputs_of_every_kind_give_the_same_pixels(tmp_path: Path) -> None:
    processor, image = CondViTProcessor(size=32), noise(40, 30)
    array = np.asarray(image)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    image.save(tmp_path / "image.png")
    path, data = tmp_path / "image.png", (tmp_path / "image.png").read_bytes()
    for same in (
        *(array, array.transpose(2, 0, 1), [array], array[None], torch.from_numpy(array.copy()), array.astype(int)),
        *(array / 255, (array / 255).astype(np.float32), torch.from_numpy(array / 255).float().permute(2, 0, 1)),
        *(path, str(path), data, bytearray(data), io.BytesIO(data), [path], (image,), image.convert("RGBA")),
        "data:image/png;base64," + base64.b64encode(data).decode(),
    ):
        assert torch.equal(processor(same, return_tensors="pt")["pixel_values"], expected), type(same)
    assert torch.equal(processor.preprocess(path, return_tensors="pt")["pixel_values"], expected)
    mixed = processor([path, data, array, image], return_tensors="pt")["pixel_values"]
    assert torch.equal(mixed, torch.cat([expected] * 4))
    with path.open("rb") as file:
        assert torch.equal(processor(file, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.filterwarnings("ignore:EXIF orientation")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_door_embeds_the_bytes_as_training_and_evaluation_do(form: str, tmp_path: Path) -> None:
    """No EXIF orientation is obeyed, as in the published code; `decode_image` is what training and evaluation call."""
    processor, path = CondViTProcessor(size=32), tmp_path / "image"
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        noise(40, 30).save(path, form, exif=exif)
        expected = to_pixel_values(pad_and_resize(decode_image(path.read_bytes()), 32))[None]
        opened = Image.open(path)
        for door in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), opened, np.asarray(opened)):
            found = processor(door, return_tensors="np")["pixel_values"]
            assert np.array_equal(found, expected), (orientation, type(door))


def test_an_image_that_asks_to_be_turned_is_warned_of() -> None:
    processor, exif, data = CondViTProcessor(size=32), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    noise(40, 30).save(data, "JPEG", exif=exif)
    with pytest.warns(UserWarning, match=r"orientation 6 is ignored; ImageOps.exif_transpose\(image\) obeys it"):
        processor(data)
    with warnings.catch_warnings(record=True) as said:
        processor([noise(40, 30), ImageOps.exif_transpose(Image.open(data))])
    assert not said


def test_gray_arrays() -> None:
    processor, gray = CondViTProcessor(size=8), np.arange(35, dtype=np.uint8).reshape(5, 7)
    expected = processor(np.stack([gray] * 3, axis=-1), return_tensors="np")["pixel_values"]
    for same in (gray, gray[..., None], gray[None], torch.from_numpy(gray), Image.fromarray(gray), [gray]):
        assert np.array_equal(processor(same, return_tensors="np")["pixel_values"], expected)
    narrow = np.arange(9, dtype=np.uint8).reshape(3, 3)  # three is a number of channels, too
    expected = processor(Image.fromarray(narrow), return_tensors="np")["pixel_values"]
    assert np.array_equal(processor(narrow, return_tensors="np")["pixel_values"], expected)


def test_the_layout_of_an_array_may_be_said() -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    last = processing_condvit.read_image(array, "channels_last")
    assert last.size == (5, 3) and np.array_equal(np.asarray(last), array)
    batch = CondViTProcessor(size=8)(array, input_data_format="channels_last", return_tensors="np")
    assert np.array_equal(batch["pixel_values"], CondViTProcessor(size=8)(last, return_tensors="np")["pixel_values"])


def test_floats_of_a_black_and_white_image_are_not_taken_for_levels() -> None:
    """Zeros and ones could be levels of 255, which would be black."""
    mask = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
    assert np.asarray(processing_condvit.read_image(mask)).tolist() == [[0, 255], [255, 0]]


def test_no_images_are_an_empty_batch() -> None:
    batch = CondViTProcessor(size=8)([], "Bags", return_tensors="pt")
    assert batch["pixel_values"].shape == (0, 3, 8, 8) and batch["category_indices"].shape == (0,)


def test_one_name_is_asked_of_every_image() -> None:
    images = [noise(9, 9)] * 3
    assert CondViTProcessor(size=8)(images, "Feet")["category_indices"].tolist() == [1, 1, 1]
    assert CondViTProcessor(size=8)(images, text=["Feet", "Bags", "Feet"])["category_indices"].tolist() == [1, 0, 1]


def test_size_mean_and_std_of_one_call() -> None:
    processor, image = CondViTProcessor(size=32), noise(40, 30)
    batch = processor(image, size=16, image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 1.0, 1.0), return_tensors="np")
    expected = np.asarray(pad_and_resize(image, 16), np.float32).transpose(2, 0, 1) / np.float32(255)
    assert np.array_equal(batch["pixel_values"][0], expected)
    assert processor.size["height"] == 32


def test_saved_and_loaded(tmp_path: Path) -> None:
    CondViTProcessor(categories=["Mugs", "Pots"], size=48).save_pretrained(tmp_path)
    loaded = CondViTProcessor.from_pretrained(tmp_path)
    batch = loaded(noise(9, 9), "Pots", return_tensors="pt")
    assert batch["pixel_values"].shape[-2:] == (48, 48)
    assert batch["category_indices"].tolist() == [1]


def test_a_saved_folder_tells_sentence_transformers_what_the_embedding_is(tmp_path: Path) -> None:
    CondViTProcessor().save_pretrained(tmp_path)
    for name in ("modules.json", "sentence_bert_config.json"):
        assert (tmp_path / name).read_text() == (ROOT / "assets/mini-condvit" / name).read_text()


def test_survives_pickling() -> None:
    """Data loaders that spawn their workers send it to them."""
    processor, image = CondViTProcessor(categories=["Mugs"], size=32), noise(20, 10)
    copy = pickle.loads(pickle.dumps(processor))
    assert np.array_equal(copy(image)["pixel_values"][0], processor(image)["pixel_values"][0])
    assert copy.categories == ["Mugs"]


def test_errors() -> None:
    processor, image = CondViTProcessor(categories=["Mugs", "Pots"], size=32), noise(20, 10)
    with pytest.raises(ValueError, match=r"'Cups'.*'Mugs', 'Pots'"):
        processor(image, "Cups")
    with pytest.raises(ValueError, match=r"Images: 3, categories: \['Mugs', 'Pots'\]. Give one for all, or one"):
        processor([image] * 3, ["Mugs", "Pots"])
    with pytest.raises(ValueError, match=r"Unknown category 'mugs'. Did you mean 'Mugs'"):
        processor(image, "mugs")
    with pytest.raises(ValueError, match=r"Unknown category None.* for no condition, leave categories out"):
        processor([image] * 2, ["Mugs", None])
    with pytest.raises(TypeError, match=r"Unknown argument 'category'. Did you mean 'categories'"):
        processor(image, category="Mugs")
    with pytest.raises(ValueError, match=r"7 is no image. Give a path"):
        processor(7)
    with pytest.raises(ValueError, match="outside the range"):
        processor(np.full((4, 4), 300))
    with pytest.raises(UnidentifiedImageError):
        processor(b"<html>")
    with pytest.raises(FileNotFoundError, match="nothing.jpg"):
        processor("nothing.jpg")


@pytest.mark.parametrize(
    "setting",
    [
        *({"resample": Image.Resampling.BICUBIC}, {"do_resize": False}, {"do_rescale": False}, {"rescale_factor": 1.0}),
        *(
            {"do_center_crop": True, "crop_size": 8},
            {"crop_size": 8},
            {"data_format": "channels_last"},
            {"pad_size": 8},
        ),
    ],
    ids=str,
)
def test_settings_that_would_be_ignored_are_refused(setting: dict, tmp_path: Path) -> None:
    """In a call, and in a processor that was made or saved with them."""
    name = next(iter(setting))
    with pytest.raises(ValueError, match=f"{name}=.* is not how the model was trained. Leave it out"):
        CondViTProcessor(size=32)(noise(20, 10), **setting)
    CondViTProcessor(size=32, **setting).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=name):
        CondViTProcessor.from_pretrained(tmp_path)(noise(20, 10))


def test_a_square_is_needed() -> None:
    processor, image = CondViTProcessor(size=32), noise(20, 10)
    with pytest.raises(ValueError, match="not a square"):
        processor(image, size={"height": 32, "width": 16})
    with pytest.raises(ValueError, match="not a square"):
        processor(image, size={"shortest_edge": 32})
