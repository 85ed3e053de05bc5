"""Every published layout becomes a folder of the same embeddings; what of it does not fit is named, all of it."""

import json
import re
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from made import noise, tiny_sentence_encoder
from published_layouts import (
    HEADS,
    PLAIN_HEADS,
    encoder_tensors,
    network_of,
    published_embeddings,
    textual_network,
    write_cached,
    write_published,
)
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

import publish_lrvsf
from lrvsf.hub.checkpoint_files import INDEX, read_tensors
from lrvsf.hub.convert_checkpoint import convert
from lrvsf.hub.misfits import Misfits
from lrvsf.hub.published_text import TextSource
from modeling_condvit import CondViTModel
from processing_condvit import CondViTProcessor

REVISION = "e0976ba9afd18be963c22c680367a3928c44fd22"
TEXTS = ["the red bag", "a photo of the blue shoe"]


@pytest.fixture
def sentences(tmp_path):
    """A tiny Sentence-T5 as wide as the golden network, and its folder."""
    pytest.importorskip("sentence_transformers")
    return tiny_sentence_encoder(tmp_path, "t5", "mean", (48, torch.nn.Identity))


@pytest.fixture
def textual(tmp_path, golden, sentences):
    """textual(spelled, sharded, **settings): a folder of the published textual layout."""

    def write(spelled="auto_model", sharded=True, **settings):
        network = {f"condvit.{name}": tensor for name, tensor in textual_network(golden).items()}
        tensors = network | encoder_tensors(sentences[0], spelled)
        return write_published(tmp_path / "published", tensors, sharded, **settings)

    return write


@pytest.fixture
def cached(tmp_path, monkeypatch, sentences):
    """The encoder as "sentence-transformers/tiny" in a cache of the Hub, which is not reached; the cache's home."""
    write_cached(tmp_path / "home", "sentence-transformers/tiny", sentences[1], REVISION)
    use_cache(monkeypatch, tmp_path / "home")
    return tmp_path / "home"


def use_cache(monkeypatch, home):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(home / "hub"), raising=False)
    monkeypatch.setattr(huggingface_hub.file_download.constants, "HF_HUB_CACHE", str(home / "hub"))


FRESH = """
import sys
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor

folder, image, result, *texts = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
scene = Image.open(image)
inputs = processor(images=[scene] * 2, texts=texts)
named = processor(images=[scene], categories=["Feet"])
save_file({
    "conditional": model(**inputs).image_embeds,
    "unconditional": model(**processor(images=[scene], texts=None)).image_embeds,
    "category": model(**named).image_embeds,
    "pixel_values": inputs["pixel_values"],
}, result)
"""


def embedded_afresh(tmp_path, folder):
    """What a process that knows nothing of this project gives for TEXTS, without a condition and for a category."""
    (tmp_path / "elsewhere").mkdir()
    noise().save(tmp_path / "scene.png")
    words = [folder, tmp_path / "scene.png", tmp_path / "result", *TEXTS]
    env = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    command = [sys.executable, "-c", FRESH, *map(str, words)]
    done = subprocess.run(command, cwd=tmp_path / "elsewhere", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(tmp_path / "result")


def check_textual(found, golden, sentences, template="{}"):
    """The published forward of the published texts' embeddings."""
    network, pixels = textual_network(golden), found["pixel_values"]
    encoded = sentences.encode([*TEXTS, template.format("Feet")], convert_to_tensor=True).cpu()
    for name, expected in {
        "conditional": published_embeddings(network, pixels, encoded[:2]),
        "unconditional": published_embeddings(network, pixels[:1]),
        "category": published_embeddings(network, pixels[:1], encoded[2:]),
    }.items():
        torch.testing.assert_close(found[name], normalize(expected, dim=-1), atol=1e-5, rtol=0)


def test_the_twin_gives_what_the_published_code_gave(golden):
    for name in ("category", "plain"):
        network, given = network_of(golden, name), load_file(golden / f"model_{name}.safetensors")
        heads = HEADS if name == "category" else PLAIN_HEADS
        plain = published_embeddings(network, given["pixel_values"], heads=heads)
        torch.testing.assert_close(plain, given["embeddings.unconditional"], atol=1e-5, rtol=0)
        if name == "category":
            tokens = network["c_embedding.weight"][given["category_indices"]]
            conditional = published_embeddings(network, given["pixel_values"], tokens)
            torch.testing.assert_close(conditional, given["embeddings.conditional"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("spelled, sharded", [("auto_model", True), ("model", False)])
def test_a_textual_folder_gives_its_embeddings_afresh(tmp_path, golden, sentences, textual, spelled, sharded):
    folder, out = textual(spelled, sharded, lm_backbone="tiny", lm_revision=REVISION), tmp_path / "out"
    assert any(folder.glob("*-of-*.safetensors")) == sharded
    said = convert(folder, out, text_encoder=sentences[1], with_text_encoder=True, text_template="the {}")
    assert said.endswith("texts as conditions, 10 categories by their names.")
    check_textual(embedded_afresh(tmp_path, out), golden, sentences[0], "the {}")
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert 'texts=["the red handbag"]' in card.text and "model(**inputs).image_embeds" in card.text
    assert f"| text encoder | sentence-transformers/tiny, revision {REVISION}, in this folder |" in card.text


def test_an_encoders_tensors_are_mapped_from_its_files_and_not_copied(textual, sentences):
    tensors = read_tensors(next(textual().glob(f"*{INDEX}")))
    encoder = TextSource({}, sentences[1]).encoder(tensors, Misfits())
    for name, ours in {
        "lm.0.auto_model.encoder.final_layer_norm.weight": encoder.backbone.encoder.final_layer_norm.weight,
        "lm.2.linear.weight": encoder.dense[0].weight,
    }.items():
        assert ours.data_ptr() == tensors[name].data_ptr() and not ours.requires_grad


def test_without_its_encoder_a_textual_model_fetches_it(tmp_path, golden, sentences, textual, cached):
    out = tmp_path / "out"
    said = convert(textual(lm_backbone="tiny", lm_revision=REVISION), out)
    assert re.search(r"in sentence-transformers/tiny.*Left out are its 20 tensors of 0 MB; --with_text_enc", said)
    names = load_file(out / "model.safetensors").keys()
    assert not [name for name in names if name.startswith("text_encoder.")] and "category_text_embeds" in names
    check_textual(embedded_afresh(tmp_path, out), golden, sentences[0])
    assert "fetched at the first text" in (out / "README.md").read_text()


def test_a_textual_network_alone_takes_the_encoder_of_a_folder(tmp_path, golden, sentences):
    torch.save(textual_network(golden), tmp_path / "condvit.pth")
    options = {"num_attention_heads": HEADS, "text_encoder": sentences[1]}
    with pytest.raises(
        ValueError, match="would be fetched from .*sentences, a folder that other machines lack: take it"
    ):
        convert(tmp_path / "condvit.pth", tmp_path / "out", **options)
    said = convert(tmp_path / "condvit.pth", tmp_path / "out", **options, with_text_encoder=True)
    assert str(tmp_path) not in said.partition(": ")[2] and "Left out" not in said
    shutil.rmtree(sentences[1])
    for name in ("config.json", "README.md"):
        told = (tmp_path / "out" / name).read_text()
        assert str(tmp_path) not in told and "sentences" in told
    check_textual(embedded_afresh(tmp_path, tmp_path / "out"), golden, sentences[0])


def test_a_textual_folder_without_its_encoders_files_says_so(tmp_path, textual, monkeypatch, capsys):
    folder = textual(lm_backbone="tiny", lm_revision=REVISION)
    use_cache(monkeypatch, tmp_path / "nothing")
    with pytest.raises(
        ValueError, match="neither tokenizer nor .* in sentence-transformers/tiny, revision e0976.*"
    ) as no:
        convert(folder, tmp_path / "out")
    assert str(no.value).endswith("Give the text encoder's folder by --text_encoder.") and "\n" not in str(no.value)


def test_an_encoder_of_another_width_is_refused(tmp_path, golden):
    pytest.importorskip("sentence_transformers")
    _, other = tiny_sentence_encoder(tmp_path, "bert")
    torch.save(textual_network(golden), tmp_path / "condvit.pth")
    with pytest.raises(ValueError, match="gives embeddings of 24 numbers, the network reads 48"):
        options = {"num_attention_heads": HEADS, "text_encoder": other, "with_text_encoder": True}
        convert(tmp_path / "condvit.pth", tmp_path / "out", **options)


def test_a_bert_behind_it_may_come_of_an_older_transformers(tmp_path, golden):
    """Which saved the numbers of its positions, too."""
    pytest.importorskip("sentence_transformers")
    sentences, folder = tiny_sentence_encoder(tmp_path, "bert", "cls", (48, torch.nn.Tanh))
    tensors = {f"condvit.{name}": tensor for name, tensor in textual_network(golden).items()}
    tensors |= encoder_tensors(sentences) | {"lm.0.auto_model.embeddings.position_ids": torch.arange(16)[None]}
    published = write_published(tmp_path / "published", tensors)
    convert(published, tmp_path / "out", text_encoder=folder, with_text_encoder=True)
    check_textual(embedded_afresh(tmp_path, tmp_path / "out"), golden, sentences)


@pytest.mark.parametrize("sharded", [True, False])
def test_a_categorical_folder_is_read_by_its_configuration(tmp_path, golden, sharded):
    network = network_of(golden)
    tensors = {f"model.{name}": tensor for name, tensor in network.items()}
    folder = write_published(tmp_path / "published", tensors, sharded, n_categories=10)
    convert(folder, tmp_path / "out")  # heads are in config.json
    model = CondViTModel.from_pretrained(tmp_path / "out").eval()
    inputs = CondViTProcessor.from_pretrained(tmp_path / "out")(images=[noise()], categories=["Feet"])
    with torch.no_grad():
        expected = published_embeddings(network, inputs["pixel_values"], network["c_embedding.weight"][1:2])
        found = model(**inputs).image_embeds
    torch.testing.assert_close(found, normalize(expected, dim=-1), atol=1e-5, rtol=0)
    assert 'images=[scene], categories=["Bags"])' in (tmp_path / "out/README.md").read_text()


def test_a_name_on_the_hub_is_downloaded_and_stands_in_the_card(tmp_path, golden, monkeypatch):
    tensors = {f"model.{name}": tensor for name, tensor in network_of(golden).items()}
    write_cached(tmp_path, "someone/condvit", write_published(tmp_path / "published", tensors), REVISION)
    use_cache(monkeypatch, tmp_path)
    publish_lrvsf.main(["convert", "someone/condvit", str(tmp_path / "out"), "--revision", "main"])
    card = (tmp_path / "out/README.md").read_text()
    assert f"| converted from | someone/condvit |\n| revision | {REVISION} |\n| licence | cc-by-nc-4.0 |" in card


def test_of_openais_clip_the_visual_half_is_taken_and_the_rest_named(tmp_path, golden):
    visual = {name: tensor for name, tensor in network_of(golden, "plain").items() if name != "logit_scale"}
    other = {"transformer.resblocks.0.ln_1.weight": 4, "token_embedding.weight": 4, "ln_final.bias": 4}
    other |= {"positional_embedding": 4, "text_projection": 4, "logit_scale": 4, "context_length": 4}
    texts = {name: torch.ones(size) for name, size in other.items()}
    state = {f"visual.{name}": tensor.half() for name, tensor in visual.items()} | texts
    torch.save(state, tmp_path / "clip.pt")
    said = convert(tmp_path / "clip.pt", tmp_path / "out", num_attention_heads=PLAIN_HEADS)
    assert "no condition. It is OpenAI's CLIP; left out are 7 tensors of its other half: context_length, ln_fin" in said
    pixels = torch.randn(3, 3, 48, 48)
    halved = {name: tensor.half().float() for name, tensor in visual.items()}
    expected = published_embeddings(halved, pixels, heads=PLAIN_HEADS)
    with torch.no_grad():
        found = CondViTModel.from_pretrained(tmp_path / "out").eval()(pixels).image_embeds
    torch.testing.assert_close(found, normalize(expected, dim=-1), atol=1e-5, rtol=0)
    assert ModelCard.load(tmp_path / "out/README.md").data.license == "mit"
    torch.save(state | {"transformer.extra": torch.ones(1)}, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="Neither the network's, under 'visual.', .*: transformer.extra"):
        convert(tmp_path / "clip.pt", tmp_path / "out 2", num_attention_heads=PLAIN_HEADS)
    torch.save(state | {"visual.layer1.0.conv1.weight": torch.ones(1)}, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="CLIP with a ResNet"):
        convert(tmp_path / "clip.pt", tmp_path / "out 2")


def test_a_torchscript_archive_is_refused_with_the_way_out(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "ViT-B-32.pt")
    with pytest.raises(ValueError, match=r"TorchScript archive.* torch.save\(clip.load\(NAME, device='cpu'\)") as no:
        convert(tmp_path / "ViT-B-32.pt", tmp_path / "out")
    assert "\n" not in str(no.value)


def test_all_that_does_not_fit_is_named_at_once(tmp_path, textual, sentences):
    folder = textual(sharded=False, layers=4)
    tensors = load_file(folder / "model.safetensors")
    network, encoder = "condvit.transformer.resblocks", "lm.0.auto_model.encoder.block"
    del tensors[f"{network}.1.ln_2.bias"], tensors[f"{encoder}.1.layer.0.layer_norm.weight"]
    tensors |= {"condvit.extra": torch.ones(1), "lm.7.extra": torch.ones(1), "other": torch.ones(1)}
    tensors["condvit.ln_post.bias"] = torch.full((48,), torch.nan)
    tensors["lm.2.linear.weight"] = torch.full((48, 24), torch.inf)
    tensors[f"{network}.0.attn.in_proj_bias"] = torch.ones(145)
    tensors["condvit.class_embedding"] = torch.ones(48, dtype=torch.int64)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError) as refused:
        convert(folder, tmp_path / "out", text_encoder=sentences[1], with_text_encoder=True)
    told = str(refused.value)
    for says in (
        "Unknown to the text encoder (1): lm.7.extra.",
        "Missing under 'lm.', by the text encoder's own names (1): backbone.encoder.block.1.layer.0.layer_norm.weight.",
        "Not finite, or no floating-point numbers (3): lm.2.linear.weight, class_embedding, ln_post.bias.",
        "Neither the network's, under 'condvit.', nor a text encoder's (1): other.",
        "Said otherwise by config.json (1): layers=4 instead of 3.",
        "Unknown to the network (1): extra.",
        "Missing (1): transformer.resblocks.1.ln_2.bias.",
        "asks for (1): transformer.resblocks.0.attn.in_proj_bias (145,) instead of (144,).",
    ):
        assert says in told, told
    assert "\n" not in told and not (tmp_path / "out").exists()


def test_of_a_thousand_keys_the_first_are_named(tmp_path, golden):
    torch.save(network_of(golden) | {f"k{number}": torch.ones(1) for number in range(1000)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"Unknown to the network \(1,000\): k0, k1, k10.* and 980 more\.$"):
        convert(tmp_path / "x.pth", tmp_path / "out", num_attention_heads=HEADS)


@pytest.mark.parametrize("lacks", ["conv1.weight", "positional_embedding", "proj"])
def test_without_what_tells_the_shape_the_rest_is_looked_at_too(tmp_path, golden, lacks):
    network = network_of(golden)
    network |= {lacks: torch.ones(3), "ln_pre.bias": torch.full((48,), torch.nan)}
    torch.save(network, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=rf"{lacks} \(3,\) instead of one of .* numbers .1.: ln_pre.bias"):
        convert(tmp_path / "x.pth", tmp_path / "out", num_attention_heads=HEADS)


def spoiled(folder, change):
    path = next(folder.glob(f"*{INDEX}"))
    index = json.loads(path.read_text())
    change(folder, index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda folder, places: places.update(a="../elsewhere.safetensors"), "Not a file beside the index"),
        (
            lambda folder, places: places.update(a=next(iter(places.values()))),
            "In the index, but not .* .1.: a",
        ),
        (
            lambda folder, places: places.pop("model.ln_pre.bias"),
            "but not in the index .1.: model.ln_pre",
        ),
        (lambda folder, places: places.clear(), "has no weight_map"),
        (lambda folder, places: next(folder.glob("*00002-of*")).unlink(), "Not a file beside .*00002-of"),
        (lambda folder, places: shutil.copy(__file__, next(folder.glob("*00002-of*"))), "00002.* cannot be read as"),
    ],
)
def test_files_and_their_index_must_agree(tmp_path, golden, change, says):
    tensors = {f"model.{name}": tensor for name, tensor in network_of(golden).items()}
    folder = write_published(tmp_path / "published", tensors)
    spoiled(folder, change)
    with pytest.raises(ValueError, match=says):
        convert(folder, tmp_path / "out")


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"width": 64}, "width=64 instead of 48"),
        ({"n_categories": 9, "patch_size": 16}, "json .2.: patch_size=16 instead of 8, n_categories=9 instead of 10"),
        ({"heads": 5}, "width 48 cannot be parted into num_attention_heads=5"),
        ({"heads": "4"}, "heads='4' in config.json"),
    ],
)
def test_a_configuration_that_is_not_the_tensors_is_refused(tmp_path, golden, settings, says):
    tensors = {f"model.{name}": tensor for name, tensor in network_of(golden).items()}
    folder = write_published(tmp_path / "published", tensors, **settings)
    with pytest.raises(ValueError, match=says):
        convert(folder, tmp_path / "out")


# What a model of the first version of this project saved, but for what each layer has.
FIRST_NAMES = {
    *("condition_embedding", "condition_position_embedding", "logit_scale", "visual_projection.weight"),
    *(f"vision_model.embeddings.{part}" for part in ("class_embedding", "patch_embedding.weight")),
    "vision_model.embeddings.position_embedding.weight",
    *(f"vision_model.{norm}.{kind}" for norm in ("pre_layrnorm", "post_layernorm") for kind in ("weight", "bias")),
}


def test_models_of_our_first_version_have_the_names_of_todays(tiny_model):
    """So `from_pretrained` reads them as they are, and nothing is to be converted."""
    names = {name for name in tiny_model.state_dict() if ".encoder.layers." not in name}
    assert names == FIRST_NAMES
