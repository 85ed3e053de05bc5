"""Int8 graphs: near float32, also where a few coordinates are far larger than all others."""

import copy

import numpy as np
import pytest
import torch
from made import encode, noise, plain, write_file
from one_layer import NONE, one_layer

pytest.importorskip("onnxscript", reason="no onnx here: pip install -r requirements-onnx.txt")

import publish_lrvsf
from lrvsf.hub.graphs import onnx_folder
from lrvsf.hub.graphs.condvit_onnx import CondViTOnnx
from lrvsf.hub.graphs.given_pictures import MOST, read_pictures
from lrvsf.hub.graphs.int8_graphs import _as_int8, _as_uint8

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "projection_dim": 32}


def pictures(folder, count=6):
    for number in range(count):
        write_file(folder / f"{number}.png", encode(noise(seed=number)))
    return folder


def with_outliers(model, factor):
    """The same function, by a few coordinates that are `factor` times as large where layers' products begin."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer in other.vision_model.encoder.layers:
            attention = layer.self_attn
            for norm, products in (
                (layer.layer_norm1, [attention.q_proj, attention.k_proj, attention.v_proj]),
                (layer.layer_norm2, [layer.mlp.fc1]),
            ):
                norm.weight[:2] *= factor
                norm.bias[:2] *= factor
                for product in products:
                    product.weight[:, :2] /= factor
    return other


def cosines(folder, kind, count=8):
    pixels = np.random.default_rng(1).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    given = {"pixels": pixels, **({"category_indices": np.arange(count)} if kind == "query" else {})}
    exact, rounded = (CondViTOnnx(folder, int8=int8)(**given).image_embeds for int8 in (False, True))
    return (exact * rounded).sum(axis=1)


def kept_of(printed):
    """(products in float32, all products) of the query's graph, from the report."""
    line = next(line for line in printed.splitlines() if "products in float32" in line)
    kept, of, total = line.split()[-3:]
    return int(kept), int(total)


@pytest.mark.parametrize("factor, some", [(1, False), (300, True)])
def test_rows_stay_near_and_products_with_outliers_stay_float(tmp_path, capsys, factor, some):
    model = with_outliers(one_layer(**SIZES), factor)
    model.save_pretrained(tmp_path / "model")
    shown = pictures(tmp_path / "pictures")
    publish_lrvsf.main(["onnx", str(tmp_path / "model"), "--int8", str(shown)])
    kept, total = kept_of(capsys.readouterr().out)
    assert total == 2 * 6 and (0 < kept < total) == some
    folder = tmp_path / "model/onnx"
    for kind in ("query", "gallery"):
        assert cosines(folder, kind).min() > 0.99
        assert (folder / f"{kind}_int8.onnx").stat().st_size < (folder / f"{kind}.onnx").stat().st_size


def test_one_error_by_hand():
    # 0 is always a level: with values from 0 to 255 every whole number is one, from -1 to 2 a level is 3/255 wide.
    np.testing.assert_array_equal(_as_uint8(np.float32([0, 3.4, 255])), [0, 3, 255])
    np.testing.assert_allclose(_as_uint8(np.float32([-1, 0, 0.004, 2])), [-1, 0, 0, 2], atol=1e-6)
    np.testing.assert_array_equal(_as_uint8(np.zeros(3, np.float32)), 0)
    np.testing.assert_allclose(_as_int8(np.float32([[127, 0.5], [3.4, -0.25]])), [[127, 0.5], [3, -0.2519685]])


def test_int8_that_is_too_far_off_is_refused(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_folder, "LEAST_COSINE", 1.1)
    shown = pictures(tmp_path / "pictures", 2)
    with pytest.raises(ValueError, match=r"average over 2 pictures; below 1.1 nothing is written. Leave --int8 out"):
        publish_lrvsf.main(["onnx", str(tiny_folder(**NONE)), str(tmp_path / "out"), "--int8", str(shown)])
    assert not (tmp_path / "out/onnx").exists()


def test_pictures_that_cannot_be_read_are_counted_and_named(tiny_folder, tmp_path, capsys):
    shown = pictures(tmp_path / "pictures", 3)
    write_file(shown / "below/torn.jpg", plain(form="JPEG")[:100])
    write_file(shown / "notes.txt", b"notes")
    single = tmp_path / "single.png"
    write_file(single, plain())
    words = ["onnx", str(tiny_folder(**NONE)), str(tmp_path / "out")]
    publish_lrvsf.main([*words, "--int8", str(shown), "--int8", str(single)])
    told = capsys.readouterr().out
    assert "torn.jpg" in told and "notes.txt" in told and "pictures left out" in told
    assert [line.split()[-1] for line in told.splitlines() if line.startswith("  pictures")] == ["4"]


@pytest.mark.parametrize("content, told", [({}, "there is no file"), ({"a.jpg": b"no"}, "1 for 'not an image'")])
def test_no_picture_at_all_is_refused(tiny_folder, tmp_path, content, told):
    (tmp_path / "pictures").mkdir()
    for name, data in content.items():
        write_file(tmp_path / "pictures" / name, data)
    with pytest.raises(ValueError, match=f"no picture can be read .{told}"):
        publish_lrvsf.main(
            ["onnx", str(tiny_folder(**NONE)), str(tmp_path / "out"), "--int8", str(tmp_path / "pictures")]
        )


def test_many_pictures_are_spread(tmp_path):
    for number in range(3 * MOST):
        write_file(tmp_path / f"{number:03}.png", plain((number, 0, 0), size=(4, 4)))
    found, left_out = read_pictures([tmp_path], 4)
    assert found.shape == (MOST, 3, 4, 4) and not left_out
    assert (found[0, 0, 0, 0], found[-1, 0, 0, 0]) == (0, 3 * MOST - 1)
