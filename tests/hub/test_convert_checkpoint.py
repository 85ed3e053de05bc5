"""The step that turns a published checkpoint into a model folder: what it writes, and what it will not read."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from lrvsf.embedding.encoder import load_model
from lrvsf.hub.checkpoint_files import checkpoint_in
from lrvsf.hub.convert_checkpoint import convert
from lrvsf.hub.published import from_published
from lrvsf.hub.push_model import model_files
from processing_condvit import CondViTProcessor

HEADS = 2


@pytest.fixture
def network(golden: Path) -> dict[str, torch.Tensor]:
    """The state dict of a small categorical model, as the published code saved it."""
    tensors = load_file(golden / "model_category.safetensors")
    return {key.removeprefix("state."): tensor for key, tensor in tensors.items() if key.startswith("state.")}


@pytest.fixture
def checkpoint(tmp_path, network):
    """checkpoint(content=..., name=...): a file of what torch.save makes of it."""

    def save(content=None, name="checkpoint.pth"):
        torch.save(network if content is None else content, tmp_path / name)
        return tmp_path / name

    return save


def test_the_folder_is_finished_and_has_the_checkpoint_s_embeddings(tmp_path, checkpoint, network, pixel_values):
    out = tmp_path / "out"
    said = convert(checkpoint(), out, num_attention_heads=HEADS)
    assert said.startswith(f"Wrote {out}: ") and said.endswith("10 categories.")
    model, expected = load_model(str(out)), from_published(network, HEADS)
    side, indices = model.config.image_size, torch.tensor([0, 9, 3])
    images = torch.nn.functional.interpolate(pixel_values, (side, side))
    with torch.no_grad():
        assert torch.equal(model(images, indices).image_embeds, expected(images, indices).image_embeds)
    assert CondViTProcessor.from_pretrained(out).categories == model.config.categories
    assert {path.name for path in model_files(out)} >= {"README.md", "model.safetensors", "modeling_condvit.py"}
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "cc-by-nc-4.0" and "| converted from | checkpoint.pth |" in card.text


@pytest.mark.parametrize("around", ["state_dict", "model"])
def test_a_checkpoint_of_a_training_holds_the_network_one_level_down(tmp_path, checkpoint, network, around):
    path = checkpoint({around: network, "optimizer": {"state": {}}, "epoch": 3})
    convert(path, tmp_path / "out", num_attention_heads=HEADS, license="mit")
    assert ModelCard.load(tmp_path / "out/README.md").data.license == "mit"


def test_a_folder_stands_for_the_one_checkpoint_in_it(tmp_path, checkpoint, network):
    old = checkpoint(name="pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    assert checkpoint_in(tmp_path) == old
    save_file(network, tmp_path / "model.safetensors")
    assert checkpoint_in(tmp_path).name == "model.safetensors", "the same weights, and no pickle"
    save_file(network, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="several checkpoints: model.safetensors, other.safetensors. Name one file"):
        checkpoint_in(tmp_path)


class Rude:
    """What a pickle would run when it is read."""

    def __reduce__(self):
        return print, ("this was run",)


def clip(network):
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**shape)).state_dict()


def textual(network):
    kept = {key: tensor for key, tensor in network.items() if key != "c_embedding.weight"}
    return {f"condvit.{key}": tensor for key, tensor in kept.items()}


@pytest.mark.parametrize(
    "content, says",
    [
        (lambda network: Rude(), "cannot be read as weights alone .*nothing is unpickled"),
        (lambda network: [1, 2], "holds a list. Give the network's state dict"),
        (lambda network: {**network, "epoch": 3}, r"\['epoch'\] are no tensors"),
        (clip, "vision_model.*are those of a CLIP or CondViT of transformers"),
        (lambda network: {"fc.weight": torch.zeros(2), 3: torch.zeros(1)}, "No conv1.weight.* among its 2 keys"),
        (textual, "conditions are texts, .* no config.json here names its lm_backbone. Give .* by --text_encoder"),
        (
            lambda network: network | {"ln_pre.bias": torch.zeros(3)},
            r"does not fit. Of another shape .*: ln_pre.bias \(3,\) instead of \(48,\)",
        ),
    ],
)
def test_other_checkpoints_are_refused_in_one_line(tmp_path, checkpoint, network, capfd, content, says):
    path = checkpoint(content(network))
    with pytest.raises(ValueError, match=says) as refused:
        convert(path, tmp_path / "out", num_attention_heads=HEADS)
    assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists() and "this was run" not in capfd.readouterr().out


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
@pytest.mark.parametrize(
    "data", [b"", b"<html>not found</html>", pickle.dumps({"a": 1}, protocol=2)[:-1], json.dumps({}).encode()]
)
def test_a_damaged_file_is_called_so(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} cannot be read as weights alone"):
        convert(tmp_path / name, tmp_path / "out")


def test_wrong_paths_are_told_before_anything_is_read(tmp_path, checkpoint):
    path = checkpoint()
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*checkpoint.pt \(did you mean .*checkpoint.pth"):
        convert(tmp_path / "checkpoint.pt", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nor is it OWNER/NAME on the Hub"):
        convert(Path("tests/condvit"), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no folder .*encoder. Give that of the text encoder"):
        convert(path, tmp_path / "out", text_encoder=tmp_path / "encoder")
    with pytest.raises(ValueError, match="revision=v1 is for a name on the Hub"):
        convert(path, tmp_path / "out", revision="v1")
    with pytest.raises(ValueError, match="conditions are not texts. Leave --with_text_encoder out"):
        convert(path, tmp_path / "out", num_attention_heads=HEADS, with_text_encoder=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty has no file that ends in .safetensors, .bin"):
        convert(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(FileExistsError, match="is there already. Name a new folder, or an empty one"):
        convert(path, tmp_path)
