"""The step that writes ONNX graphs: their rows are torch's, and what was there before stays when they are not."""

import errno
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from examples import examples, run_script
from made import encode, noise, tiny_clip, write_file, write_tiny_reader
from one_layer import CATEGORY, NONE, TEXT, one_layer
from transformers import Dinov2Config, Dinov2Model

pytest.importorskip("onnxscript", reason="no onnx here: pip install -r requirements-onnx.txt")

import onnx
import onnxruntime

import publish_lrvsf
from lrvsf.embedding.encoder import load_model
from lrvsf.hub.graphs import onnx_folder, onnx_graphs, write_onnx
from lrvsf.hub.graphs.condvit_onnx import CondViTOnnx
from processing_condvit import CondViTProcessor

THREE = {"num_condition_tokens": 2, "categories": ["a", "b", "c"]}
TWO = {"gallery": one_layer().config.to_diff_dict()}  # a frozen gallery
FLOATS = "--float_pixels"


@pytest.fixture(scope="module")
def exported(tiny_folder, tmp_path_factory):
    """`exported(*flags, **config)`: the onnx folder of a tiny model, written once for each."""
    made = {}

    def folder(*flags, **config):
        key = repr((flags, sorted(config.items())))
        if key not in made:
            out = tmp_path_factory.mktemp("out")
            publish_lrvsf.main(["onnx", str(tiny_folder(**config)), str(out), *flags])
            made[key] = out / "onnx"
        return made[key]

    return folder


def pictures(count, size=32):
    return np.random.default_rng(count).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def asked(model, count):
    """A condition for each of `count` pictures, as both kinds of model take it; none at all where there is none."""
    if model.config.condition == "none":
        return {}
    if model.config.condition == "text":
        return {"text_embeds": torch.randn(count, model.config.text_dim)}
    return {"category_indices": torch.arange(count) % len(model.config.categories)}


def pixel_values_of(pixels):
    images = [pixel.transpose(1, 2, 0) for pixel in pixels]
    return CondViTProcessor(size=32)(images, return_tensors="pt").pixel_values


@pytest.mark.parametrize(
    "config, flags",
    [(CATEGORY, []), (CATEGORY, [FLOATS]), (THREE, []), (TEXT, []), (NONE, [FLOATS]), (TWO, [])],
    ids=str,
)
def test_rows_are_torchs_in_batches_of_any_size(exported, config, flags):
    model, graphs = one_layer(**config), CondViTOnnx(exported(*flags, **config))
    for count in (1, 3, 10):
        pixels = pictures(count)
        values, condition = pixel_values_of(pixels), asked(model, count)
        for given in ({}, condition):
            with torch.inference_mode():
                expected = model(values, **given).image_embeds.numpy()
            arrays = {name: tensor.numpy() for name, tensor in given.items()}
            for found in (graphs(values.numpy(), **arrays), graphs(pixels=pixels, **arrays), graphs(values, **given)):
                np.testing.assert_allclose(found.image_embeds, expected, atol=1e-5)


def test_a_graph_says_what_it_is_and_nothing_of_this_machine(exported, tmp_path):
    folder = exported()
    for name, inputs in {"query": ["pixels", "category_indices"], "gallery": ["pixels"]}.items():
        graph = onnx.load(folder / f"{name}.onnx")
        facts = {prop.key: prop.value for prop in graph.metadata_props}
        assert (facts["model"], facts["image_size"], facts["opset"], facts["precision"]) == (
            "tiny",
            "32",
            "20",
            "float32",
        )
        assert graph.opset_import[0].version == 20 and len(facts["weights"]) == 16
        assert json.loads(facts["categories"]) == one_layer().config.categories
        assert [one.name for one in graph.graph.input] == inputs and graph.graph.output[0].name == "image_embeds"
        assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
        content = (folder / f"{name}.onnx").read_bytes()
        assert b".py" not in content and str(tmp_path.parent).encode() not in content
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {
        "query.onnx",
        "gallery.onnx",
        "condvit_onnx.py",
    }


def test_a_model_without_conditions_has_no_query(exported):
    folder = exported(FLOATS, **NONE)
    assert not (folder / "query.onnx").exists()
    with pytest.raises(ValueError, match='condition="none"'):
        CondViTOnnx(folder)(pixels=pictures(1), category_indices=[0])


@pytest.mark.parametrize("index", [-1, 10])
def test_the_graph_itself_refuses_an_unknown_category(exported, index):
    session = onnxruntime.InferenceSession(exported() / "query.onnx", providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="indices element out of data bounds"):
        session.run(None, {"pixels": pictures(1), "category_indices": np.array([index])})


def test_large_weights_lie_beside_the_graph(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graphs, "PROTOBUF_LIMIT", 0)
    monkeypatch.setattr(onnx_folder, "PROTOBUF_LIMIT", 0)
    write_file(tmp_path / "pictures/a.png", encode(noise()))
    publish_lrvsf.main(["onnx", str(tiny_folder()), str(tmp_path / "out"), "--int8", str(tmp_path / "pictures")])
    folder = tmp_path / "out/onnx"
    names = {f"{name}.onnx{suffix}" for name in ("query", "query_int8") for suffix in ("", ".data")}
    assert names <= {path.name for path in folder.iterdir()}
    assert (folder / "query.onnx.data").stat().st_size > (folder / "query.onnx").stat().st_size
    shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.rmtree(folder)
    pixels = pictures(3)
    with torch.inference_mode():
        expected = one_layer()(pixel_values_of(pixels)).image_embeds
    for int8, tolerance in ((False, 1e-5), (True, 0.05)):
        found = CondViTOnnx(tmp_path / "elsewhere", int8=int8)(pixels=pixels).image_embeds
        np.testing.assert_allclose(found, expected, atol=tolerance)


def test_a_clip_becomes_a_gallery(tmp_path):
    tiny_clip().save_pretrained(tmp_path / "clip")
    publish_lrvsf.main(["onnx", str(tmp_path / "clip")])
    assert (tmp_path / "clip/onnx/gallery.onnx").is_file() and not (tmp_path / "clip/onnx/query.onnx").exists()


def test_a_text_encoder_is_no_part_of_a_graph(tmp_path, monkeypatch):
    reader = write_tiny_reader(tmp_path / "reader")
    # Only a graph's own weights count: a text encoder in the checkpoint may be far larger than the tower.
    weights = {name: tensor.nbytes for name, tensor in load_model(str(reader)).state_dict().items()}
    own = sum(size for name, size in weights.items() if not name.startswith("text_encoder."))
    monkeypatch.setattr(onnx_graphs, "PROTOBUF_LIMIT", own + 10_000)
    publish_lrvsf.main(["onnx", str(reader)])
    assert not list(reader.glob("onnx/*.data")) and sum(weights.values()) > own + 10_000


def kept_folder(path):
    """An earlier export, as far as files go."""
    write_file(path / "onnx/query.onnx", b"earlier")
    return path


def test_rows_that_differ_are_refused_and_an_earlier_export_stays(tiny_folder, tmp_path, monkeypatch):
    out = kept_folder(tmp_path / "out")
    monkeypatch.setattr(onnx_folder, "torch_rows", lambda model, name, pixels: np.zeros((len(pixels), 16)))
    with pytest.raises(ValueError, match=r"differ from torch's by .* more than 1e-04"):
        publish_lrvsf.main(["onnx", str(tiny_folder(**NONE)), str(out)])
    assert (out / "onnx/query.onnx").read_bytes() == b"earlier" and len(list(out.iterdir())) == 1


def test_a_full_disk_leaves_an_earlier_export(tiny_folder, tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = kept_folder(tmp_path / "out")
    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", full)
    with pytest.raises(OSError, match="No space left"):
        publish_lrvsf.main(["onnx", str(tiny_folder(**NONE)), str(out)])
    assert (out / "onnx/query.onnx").read_bytes() == b"earlier" and len(list(out.iterdir())) == 1


def test_a_number_that_is_none_is_refused(tmp_path):
    model = one_layer(**NONE)
    model.visual_projection.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match="differ from torch's by nan"):
        publish_lrvsf.main(["onnx", str(tmp_path / "broken")])
    assert not (tmp_path / "broken/onnx").exists()


def test_what_is_wrong_is_refused_before_any_work(tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        publish_lrvsf.main(["onnx", str(tmp_path / "empty")])
    with pytest.raises(ValueError, match="Name a second folder"):
        publish_lrvsf.main(["onnx", "OWNER/NAME"])
    baseline = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    Dinov2Model(Dinov2Config(**baseline)).save_pretrained(tmp_path / "dino")
    with pytest.raises(ValueError, match="dino is a baseline of another family. Give a CondViT or a CLIP"):
        publish_lrvsf.main(["onnx", str(tmp_path / "dino")])
    with pytest.raises(FileNotFoundError, match="Name pictures, or a folder of them"):
        publish_lrvsf.main(["onnx", str(tiny_folder()), "--int8", str(tmp_path / "none")])
    write_file(tmp_path / "out/onnx/mine.txt", b"mine")
    with pytest.raises(FileExistsError, match=r"holds mine.txt, which this step did not write"):
        publish_lrvsf.main(["onnx", str(tiny_folder()), str(tmp_path / "out")])
    write_file(tmp_path / "file", b"")
    with pytest.raises(NotADirectoryError, match="is a file"):
        publish_lrvsf.main(["onnx", str(tiny_folder()), str(tmp_path / "file")])
    monkeypatch.setattr(write_onnx, "find_spec", lambda name: None if name == "onnxscript" else True)
    with pytest.raises(ImportError, match=r'needs onnxscript: pip install "lrvsf\[onnx\]"'):
        publish_lrvsf.main(["onnx", str(tiny_folder())])


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as if it were not installed
sys.path[:0] = sys.argv[1:3]
from condvit_onnx import CondViTOnnx
from processing_condvit import CondViTProcessor
model, processor = CondViTOnnx(), CondViTProcessor.from_pretrained(sys.argv[2])
batch = processor(sys.argv[3], categories=["Feet"], return_tensors="np")
print(model(**batch).image_embeds.tolist())
"""


def test_it_runs_without_torch(exported, tiny_folder, tmp_path):
    write_file(tmp_path / "a.png", encode(noise()))
    command = [sys.executable, "-c", WITHOUT_TORCH, str(exported()), str(tiny_folder()), str(tmp_path / "a.png")]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert ended.returncode == 0, ended.stderr[-3000:]
    batch = CondViTProcessor(size=32)(tmp_path / "a.png", categories="Feet")
    with torch.inference_mode():
        expected = one_layer()(**batch).image_embeds
    np.testing.assert_allclose(json.loads(ended.stdout), expected, atol=1e-5)


def test_the_example_of_the_docs_runs(exported, tiny_folder, tmp_path):
    (code,) = examples("docs/serving.md", "From Python", 1)
    shutil.copytree(tiny_folder(), tmp_path / "MODEL")
    shutil.copytree(exported(), tmp_path / "MODEL/onnx")
    for name in ("scene.jpg", "product.jpg"):
        write_file(tmp_path / name, encode(noise(), "JPEG"))
    # Where the files of the docs' imports lie.
    assert run_script(code, tmp_path, "MODEL/onnx", "MODEL").startswith("[[")
