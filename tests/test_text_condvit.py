"""Texts as conditions: each encoder gives what its own library gives, and the image's token is what it gave."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from made import WORDS, noise, tiny_clip, tiny_condvit, tiny_sentence_encoder, tiny_tokenizer
from safetensors.torch import load_file, save_file

from configuration_condvit import CondViTConfig
from modeling_condvit import CondViTModel
from processing_condvit import CondViTProcessor
from text_condvit import CondViTTextEncoder, describe_text_encoder, load_tokenizer, text_dim_of

TEXTS = ["the red bag", "a photo of the blue shoe of Feet of Head of Neck", "bag", "the unknown hat"]
KINDS = {
    "t5": ("t5", "mean", (32, torch.nn.Identity), True),  # as Sentence-T5
    "bert": ("bert", "mean", None, True),
    "bert, cls": ("bert", "cls", (16, torch.nn.Tanh), False),
    "bert, last": ("bert", "lasttoken", None, False),
}


@pytest.fixture
def clip(tmp_path):
    """A whole CLIP with its tokenizer, as a folder."""
    torch.manual_seed(0)
    model = tiny_clip()
    model.save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    return model, str(tmp_path / "clip")


@pytest.fixture
def text_model(clip):
    """A CondViT that reads texts by that CLIP's own tower, which is in its checkpoint; and its processor."""
    _, folder = clip
    model = CondViTModel.from_clip(folder, text_encoder=folder, text_encoder_in_checkpoint=True).eval()
    return model, CondViTProcessor(size=32, tokenizer=tiny_tokenizer())


def embed(model, **inputs):
    with torch.no_grad():
        return model(**inputs).image_embeds


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_gives_what_sentence_transformers_gives(tmp_path, kind):
    pytest.importorskip("sentence_transformers")
    theirs, folder = tiny_sentence_encoder(tmp_path, *KINDS[kind])
    about = describe_text_encoder(str(folder))
    assert json.loads(json.dumps(about)) == about
    encoder = CondViTTextEncoder.from_pretrained(str(folder), about)
    tokenizer = load_tokenizer(str(folder), about)
    found = encoder.embed(TEXTS, tokenizer)
    assert found.shape == (4, text_dim_of(about)) and tokenizer.model_max_length == 8
    expected = theirs.encode(TEXTS, convert_to_tensor=True).cpu()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_clips_text_tower_gives_its_text_features(clip):
    model, folder = clip
    about = describe_text_encoder(folder)
    encoder, tokens = (
        CondViTTextEncoder.from_pretrained(folder, about),
        tiny_tokenizer()(TEXTS[:1] * 2, return_tensors="pt"),
    )
    with torch.no_grad():
        expected = model.text_projection(
            model.text_model(**{k: tokens[k] for k in ("input_ids", "attention_mask")}).pooler_output
        )
    torch.testing.assert_close(encoder(tokens["input_ids"], tokens["attention_mask"]), expected)


def test_a_texts_token_is_its_embedding_where_that_fits_and_a_projection_of_it_where_not(pixel_values):
    torch.manual_seed(0)
    fits = tiny_condvit(condition="text", text_dim=32)
    assert not hasattr(fits, "condition_projection")
    sentence = torch.randn(3, 32)
    assert torch.equal(fits.text_tokens(sentence), (sentence + fits.condition_position_embedding)[:, None])
    two = tiny_condvit(condition="text", text_dim=20, num_condition_tokens=2)
    tokens = two.text_tokens(torch.randn(3, 20))
    assert tokens.shape == (3, 2, 32)
    out = two(pixel_values, text_embeds=torch.randn(3, 20))
    assert out.last_hidden_state.shape == (3, 1 + 16 + 2, 32)


def test_a_category_is_the_text_of_its_name(text_model):
    model, processor = text_model
    named = processor([noise()] * 2, categories=["Feet", "Bags"], return_tensors="pt")
    said = processor([noise()] * 2, texts=["Feet", "Bags"], return_tensors="pt")
    torch.testing.assert_close(embed(model, **named), embed(model, **said))
    assert not torch.allclose(embed(model, **said)[0], embed(model, **said)[1])
    plain = processor([noise()], return_tensors="pt")
    assert torch.equal(embed(model, **plain)[0], model(target_pixel_values=plain["pixel_values"]).target_embeds[0])


def test_a_new_category_needs_its_name_only_and_leaves_the_others_as_they_were(text_model):
    model, processor = text_model
    before = embed(model, **processor(noise(), categories="Feet", return_tensors="pt"))
    model.add_categories(["the red bag"])
    processor.categories.append("the red bag")
    assert torch.equal(before, embed(model, **processor(noise(), categories="Feet", return_tensors="pt")))
    new = embed(model, **processor(noise(), categories="the red bag", return_tensors="pt"))
    torch.testing.assert_close(new, embed(model, **processor(noise(), texts="the red bag", return_tensors="pt")))


def test_names_that_the_encoder_cannot_tell_apart_are_told(text_model):
    """Two words that it does not know are one to it, and would be answered alike in silence."""
    model, _ = text_model
    with pytest.warns(UserWarning, match=r"cannot tell \['Rings', 'Nails'\] apart"):
        model.add_categories(["Rings", "Nails"])
    assert model.categories_alike() == ["Rings", "Nails"]


@pytest.mark.parametrize("inside", [True, False])
def test_the_encoder_is_frozen_and_travels_only_when_asked(clip, inside, tmp_path):
    _, folder = clip
    model = CondViTModel.from_clip(folder, text_encoder=folder, text_encoder_in_checkpoint=inside)
    model.train()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith("text_encoder.") for name in trained)
    assert any(name.startswith("text_encoder.") for name in model.state_dict()) == inside
    assert not any(module.training for module in model.sentence_encoder().modules())
    processor = CondViTProcessor(size=32, tokenizer=tiny_tokenizer())
    inputs = processor([noise()], texts=["the red bag"], return_tensors="pt")
    model(**inputs).image_embeds.sum().backward()
    assert model.condition_projection.weight.grad is not None
    assert all(parameter.grad is None for parameter in model.sentence_encoder().parameters())
    model.save_pretrained(tmp_path / "saved")
    again = CondViTModel.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(embed(again, **inputs), embed(model.eval(), **inputs))
    assert len(again.condition_tokens(torch.tensor([1]))) == 1


FRESH = """
import sys
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor

folder, again, image, result = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(processor).__module__.startswith("transformers_modules."), type(processor)
inputs = processor([Image.open(image)] * 2, texts=["the red bag", "Feet"], return_tensors="pt")
save_file({"embeds": model(**inputs).image_embeds}, result)
model.save_pretrained(again)
processor.save_pretrained(again)
"""


def run_afresh(tmp_path, program, *words):
    """Runs a program where nothing of this project is at hand, and no network."""
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    env = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    command = [sys.executable, "-c", program, *map(str, words)]
    settings = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    done = subprocess.run(command, cwd=tmp_path / "elsewhere", env=env, **settings)
    assert done.returncode == 0, done.stderr


def test_a_folder_opens_in_a_fresh_process_and_is_saved_again_there(text_model, tmp_path):
    model, processor = text_model
    noise().save(tmp_path / "image.png")
    model.save_pretrained(tmp_path / "0")
    processor.save_pretrained(tmp_path / "0")
    expected = embed(model, **processor([noise()] * 2, texts=["the red bag", "Feet"], return_tensors="pt"))
    for generation in (1, 2):
        paths = [
            tmp_path / str(generation - 1),
            tmp_path / str(generation),
            tmp_path / "image.png",
            tmp_path / "result",
        ]
        run_afresh(tmp_path, FRESH, *paths)
        torch.testing.assert_close(load_file(tmp_path / "result")["embeds"], expected, atol=1e-6, rtol=0)


ADDED = """
import sys
from safetensors.torch import save_file
from transformers import AutoModel

folder, result = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
model.add_categories(["the red bag"])
save_file({"embeds": model.category_text_embeds[-1:].clone()}, result)
"""


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_a_folder_with_its_encoder_is_enough_to_add_a_category(tmp_path, clip, kind):
    """In a fresh process, without a network, when the encoder's own folder is gone."""
    folder = clip[1]
    if kind == "t5":
        pytest.importorskip("sentence_transformers")
        folder = str(tiny_sentence_encoder(tmp_path, *KINDS["t5"])[1])
    model = CondViTModel.from_clip(clip[1], text_encoder=folder, text_encoder_in_checkpoint=True)
    assert model.sentence_tokenizer().model_max_length == 8, "the encoder's, not CLIP's"
    expected = model.text_encoder.embed(["the red bag"], tiny_tokenizer())
    model.save_pretrained(tmp_path / "saved")
    CondViTProcessor(size=32, tokenizer=tiny_tokenizer()).save_pretrained(tmp_path / "saved")
    shutil.rmtree(folder)
    run_afresh(tmp_path, ADDED, tmp_path / "saved", tmp_path / "result")
    torch.testing.assert_close(load_file(tmp_path / "result")["embeds"], expected)


def test_an_encoder_below_its_folder_is_read_with_its_tokenizer(tmp_path):
    """Where older sentence-transformers put it."""
    pytest.importorskip("sentence_transformers")
    theirs, folder = tiny_sentence_encoder(tmp_path, "bert")
    (folder / "0_Transformer").mkdir()
    names = ("config.json", "model.safetensors", "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json")
    for name in names:
        (folder / name).rename(folder / "0_Transformer" / name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    about = describe_text_encoder(str(folder))
    encoder, tokenizer = CondViTTextEncoder.from_pretrained(str(folder)), load_tokenizer(str(folder), about)
    expected = theirs.encode(TEXTS, convert_to_tensor=True).cpu()
    torch.testing.assert_close(encoder.embed(TEXTS, tokenizer), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "asked, told",
    [
        ({"texts": ""}, "says nothing"),
        ({"texts": ["bag", " \n"]}, "says nothing"),
        ({"texts": ["bag", None]}, "texts holds None, which says nothing"),
        ({"texts": ["bag", 3]}, "texts holds 3, which says nothing"),
        ({"texts": "bag", "categories": "Feet"}, "one condition"),
        ({"texts": ["bag"]}, "Images: 2, texts"),
    ],
)
def test_texts_that_cannot_be_meant_are_refused(text_model, asked, told):
    with pytest.raises(ValueError, match=told):
        text_model[1]([noise(), noise()], **asked)


def test_a_long_text_is_cut_and_said(text_model):
    _, processor = text_model
    with pytest.warns(UserWarning, match="longer than 8 tokens"):
        cut = processor(noise(), texts="the red bag " * 3333, return_tensors="pt")
    assert cut["input_ids"].shape == (1, 8)
    with pytest.warns(UserWarning, match="longer than 8 tokens; its end is cut") as said:
        text_model[0].text_encoder.embed(["bag", "the red bag " * 3333, "the blue bag " * 99], processor.tokenizer)
    assert len(said) == 1


def test_inputs_that_do_not_fit_are_refused(text_model, pixel_values):
    model, processor = text_model
    with pytest.raises(ValueError, match=r"text_embeds has shape \(3, 9\); this model reads \(3, 16\)"):
        model(pixel_values, text_embeds=torch.zeros(3, 9))
    with pytest.raises(ValueError, match=r"text_embeds has shape \(2, 16\), but the batch of images \(3,\)"):
        model(pixel_values, text_embeds=torch.zeros(2, 16))
    with pytest.raises(ValueError, match="category_indices and text_embeds were given"):
        model(pixel_values, torch.zeros(3, dtype=torch.long), text_embeds=torch.zeros(3, 16))
    with pytest.raises(ValueError, match="attention_mask was given without"):
        model(pixel_values, attention_mask=torch.ones(3, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="text_embeds holds numbers that are not finite"):
        model(pixel_values, text_embeds=torch.full((3, 16), torch.nan))
    with pytest.raises(ValueError, match="the tokenizer is another model's"):
        model(pixel_values, input_ids=torch.full((3, 4), 24), attention_mask=torch.ones(3, 4, dtype=torch.long))
    for condition in ("category", "none"):
        with pytest.raises(ValueError, match="Call it without a text"):
            tiny_condvit(condition=condition)(pixel_values, text_embeds=torch.zeros(3, 16))
        with pytest.raises(ValueError, match="no text encoder"):
            tiny_condvit(condition=condition)(pixel_values, input_ids=torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="reads no texts"):
        CondViTProcessor(size=32)(noise(), texts="bag")


def test_a_checkpoint_without_its_encoders_weights_is_refused(text_model, tmp_path):
    model, _ = text_model
    model.save_pretrained(tmp_path / "saved")
    weights = load_file(tmp_path / "saved/model.safetensors")
    lost = {name: tensor for name, tensor in weights.items() if "text_encoder.backbone.text_model.encoder" not in name}
    save_file(lost, tmp_path / "saved/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks its text encoder's weights"):
        CondViTModel.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("module", ["WeightedLayerPooling", "CNN"])
def test_parts_that_are_not_known_are_refused_by_name(tmp_path, module):
    pytest.importorskip("sentence_transformers")
    _, folder = tiny_sentence_encoder(tmp_path, "bert")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 9, "name": "9", "path": "9", "type": f"sentence_transformers.models.{module}"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=f"has a {module}, which is none of"):
        describe_text_encoder(str(folder))


def test_a_model_that_is_no_text_encoder_is_refused(tmp_path):
    tiny_condvit().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Give a CLIP, or"):
        describe_text_encoder(str(tmp_path))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_strangers_attention_kernel_is_not_fetched(clip, key):
    about = describe_text_encoder(clip[1])
    about["config"][key] = "stranger/kernel"
    assert CondViTTextEncoder(about).backbone.config._attn_implementation in ("sdpa", "eager")


def test_configurations_that_cannot_be():
    with pytest.raises(StrictDataclassError, match="has no {}"):
        CondViTConfig(condition="text", text_template="a photo")
    with pytest.raises(StrictDataclassError, match="or other braces"):
        CondViTConfig(condition="text", text_template="a {kind} of {}")
    with pytest.raises(StrictDataclassError, match="text_dim=0 is not from 1"):
        CondViTConfig(condition="text", text_dim=0)
    assert len(WORDS) <= 24
