"""Runs whose queries are asked in words: the same promises as by category, a store of embeddings, a complete folder."""

import json
import shutil
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from forks import forks_of
from made import TINY, as_flags, edit_rows, rows_of, tiny_sentence_encoder
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel

import evaluate_lrvsf
from lrvsf.data.images import decode_image
from lrvsf.data.testset import ProductTestSet
from lrvsf.data.wording import text_hash
from lrvsf.embedding.captions import CaptionStore
from lrvsf.embedding.encoder import Encoder, load_model
from lrvsf.embedding.fingerprint import weights_digest
from lrvsf.mini.build import MiniSize, build_mini
from lrvsf.mini.clip import make_tokenizer
from lrvsf.training.objective import frozen_gallery
from text_condvit import CondViTTextEncoder

SCRIPT = Path(__file__).parent / "trainings.py"
BOTH = ["captions:0.5", "categories:0.5"]


def captions_of(mini):
    return [text for row in rows_of(mini / "train") for image in row["images"] for text in image["captions"]]


@pytest.fixture(scope="module")
def worded(mini, tmp_path_factory):
    """A CLIP that reads the words of Mini's captions, with its tokenizer."""
    folder = tmp_path_factory.mktemp("worded")
    tokenizer = make_tokenizer([*captions_of(mini), "Bags Feet Hands Head Lower Body Neck Outwear Upper Waist Whole"])
    torch.manual_seed(0)
    text = {**TINY, "vocab_size": len(tokenizer), "max_position_embeddings": 80, "pad_token_id": 0}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    CLIPModel(CLIPConfig(text_config=text, vision_config=TINY, projection_dim=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(mini, tmp_path_factory):
    """Mini with a store of its own; one product has no caption, one neither caption nor category."""
    folder = tmp_path_factory.mktemp("data") / "mini"
    shutil.copytree(mini, folder)

    def untell(rows):
        rows[7]["images"][0]["captions"] = []
        rows[8]["images"][0].update(captions=[], category=None)

    edit_rows(folder / "train/00000.parquet", untell)
    return folder


@pytest.fixture(scope="module")
def train_words(train, worded, data):
    """train_words(folder, **flags): `train` by text."""
    return lambda folder, **flags: train(folder, **{"model": worded, "data": data, "condition": "text", **flags})


@pytest.fixture(scope="module")
def run(train_words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("by-words")
    flags = {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 2, "text_from": BOTH}
    return folder, train_words(folder, **flags)


def test_the_store_has_every_text_that_may_ask_and_later_runs_take_it(run, train_words, data, tmp_path, capsys):
    (place,) = (data / "captions").iterdir()
    store = CaptionStore(place, 16)
    simple = [row["images"][0] for row in rows_of(data / "train")]
    asked = {text for image in simple for text in image["captions"]}
    asked |= {image["category"] for image in simple if image["category"]}
    asked |= set(ProductTestSet(data / "validation").captions())
    assert len(store) == len(asked) and store.has(np.array([text_hash(text) for text in asked], np.uint64)).all()
    files = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    train_words(tmp_path / "captions only", max_steps=2)
    assert "embedded" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == files
    train_words(tmp_path / "elsewhere", max_steps=2, caption_store=tmp_path / "store")
    assert "texts into" in capsys.readouterr().out and (tmp_path / "store" / place.name).is_dir()


def test_the_stored_rows_are_the_text_encoder_s(run, worded, data):
    (place,) = (data / "captions").iterdir()
    texts = ProductTestSet(data / "validation").captions()
    model = load_model(str(run[0]))
    exact = Encoder(model, "text").sentences(texts)
    torch.testing.assert_close(CaptionStore(place, 16).of_texts(texts), exact, rtol=0.02, atol=0.02)
    assert isinstance(model.text_encoder, CondViTTextEncoder), "CLIP's own tower travels with the model"


def test_the_output_opens_by_the_auto_classes_and_answers_words_and_names(run, data):
    folder, losses = run
    assert len(losses) == 6 and all(np.isfinite(losses))
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert model.config.condition == "text" and model.category_text_embeds.abs().sum(1).min() > 0
    scene = decode_image(next(ProductTestSet(data / "validation").products()).query_image)
    by_text, by_name = (
        model(**processor([scene], return_tensors="pt", **asked)).image_embeds
        for asked in ({"texts": ["Bags"]}, {"categories": ["Bags"]})
    )
    torch.testing.assert_close(by_text, by_name)


def test_words_ask_a_frozen_gallery(run, train_words, tmp_path, monkeypatch):
    """Whole embeddings and their first dimensions, by captions and by names."""
    # Six steps leave a model to which all drawings look alike.
    monkeypatch.setattr(frozen_gallery, "ALIKE", (0.95, 1.0))
    flags = {"model": run[0], "freeze_gallery": True, "matryoshka_dims": [4, 8], "max_steps": 2, "text_from": BOTH}
    losses = train_words(tmp_path, without=["phase1_steps"], save_steps=1, **flags)
    assert len(losses) == 2 and all(np.isfinite(losses))
    before, after = load_model(str(run[0])), load_model(str(tmp_path / "checkpoint-1"))
    assert weights_digest(after.gallery) == weights_digest(before)
    weight = "vision_model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(before.state_dict()[weight], after.state_dict()[weight])


def test_the_text_encoder_keeps_every_bit_and_the_condition_learns(run, worded):
    trained, clip = load_file(run[0] / "model.safetensors"), load_file(worded / "model.safetensors")
    towers = [name for name in clip if name.startswith("text_model.")]
    assert towers and all(torch.equal(trained[f"text_encoder.backbone.{name}"], clip[name]) for name in towers)
    state = torch.load(run[0] / "checkpoint-6/optimizer.pt", weights_only=True)
    names = [name for name in trained if not name.startswith(("text_encoder.", "category_text_embeds"))]
    assert sum(len(group["params"]) for group in state["param_groups"]) == len(names)


def test_validation_is_the_evaluation_by_text(run, data, tmp_path):
    """The logged recall is what the evaluation's encoder and the whole validation set give."""
    from lrvsf.training.validation import validate

    folder, _ = run
    state = json.loads((folder / "checkpoint-6/trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "eval_R@1" in entry][-1]
    found = validate(Encoder(load_model(str(folder)), "text"), ProductTestSet(data / "validation"), 8)
    assert logged["step"] == 6 and logged["eval_loss"] == pytest.approx(found["loss"], rel=1e-2)
    places = {"model": folder, "data_root": data / "test", "gallery_sizes": 20, "folds": 2}
    for conditioning, flags in (("text", {}), ("category", {"conditioning": "category"})):
        evaluate_lrvsf.main(as_flags(**places, **flags, output_dir=tmp_path / conditioning))
        results = json.loads((tmp_path / conditioning / "results.json").read_text())
        assert results["conditioning"] == conditioning and results["n_products"] == 9
    with pytest.raises(ValueError, match="conditioning: 'text' then, 'none' now"):
        evaluate_lrvsf.main(
            as_flags(**places, conditioning="none", embeds=tmp_path / "text/embeds", output_dir=tmp_path / "none")
        )


def test_a_resumed_run_ends_where_the_uninterrupted_one_did(run, train_words, tmp_path):
    folder, losses = run
    flags = {"save_steps": 2, "text_from": BOTH, "eval_strategy": "steps", "eval_steps": 3}
    assert train_words(tmp_path, resume_from_checkpoint=folder / "checkpoint-4", **flags) == losses
    weights = [(path / "model.safetensors").read_bytes() for path in (folder, tmp_path)]
    assert weights[0] == weights[1]
    with pytest.raises(ValueError, match="text_from: .'captions:0.5', 'categories:0.5'. then, .'captions'. now"):
        train_words(tmp_path / "other", resume_from_checkpoint=folder / "checkpoint-4", save_steps=2)


def test_chunks_and_loading_processes_give_the_same_losses(run, train_words, tmp_path):
    flags = {"save_steps": 6, "text_from": BOTH}
    assert train_words(tmp_path / "chunks", grad_cache_chunk=3, **flags) == pytest.approx(run[1], rel=1e-4)
    assert train_words(tmp_path / "workers", dataloader_num_workers=2, **flags) == run[1]


def test_a_trained_model_trains_on_with_other_categories(run, train_words, tmp_path):
    train_words(tmp_path, model=run[0], condition="text", categories=["Feet", "Bags", "Veils"], max_steps=2)
    again, before = load_model(str(tmp_path)), load_model(str(run[0]))
    assert again.config.categories == ["Feet", "Bags", "Veils"]
    assert torch.equal(again.category_text_embeds[:2], before.category_text_embeds[[1, 0]])


def test_what_cannot_be_meant_is_refused(train, train_words, run, data, tmp_path):
    with pytest.raises(ValueError, match="text_from='titles': 'titles' is unknown"):
        train_words(tmp_path, text_from="titles")
    # Two words that the encoder does not know are one to it, and would be answered alike in silence.
    with pytest.raises(ValueError, match="one embedding to 'Rings', 'Nails'. Name categories in words that it knows"):
        train_words(tmp_path, text_from=BOTH, categories=["Bags", "Rings", "Nails"])
    with pytest.raises(ValueError, match="text_encoder='clip' with condition='category': add --condition text"):
        train(tmp_path, text_encoder="clip")
    with pytest.raises(ValueError, match=r"text_from=\['captions'\], but condition='category'"):
        train(tmp_path, text_from="captions")
    with pytest.raises(ValueError, match="was trained with condition='text' and keeps what it reads"):
        train_words(tmp_path, model=run[0], text_encoder="clip")
    with pytest.raises(ValueError, match="is a CondViT; give a sentence-transformers model or a CLIP"):
        train_words(tmp_path, text_encoder=run[0])
    (tmp_path / "note.txt").touch()
    with pytest.raises(OSError, match="note.txt/captions cannot be written to, name a folder with --caption_store"):
        train_words(tmp_path / "out", caption_store=tmp_path / "note.txt/captions")
    silent = tmp_path / "silent"
    shutil.copytree(data, silent)
    edit_rows(silent / "validation/products.parquet", lambda rows: rows[1].update(blip2_caption1=" ", CATEGORY=None))
    with pytest.raises(ValueError, match="row 1: there is neither a caption .blip2_caption1. nor a category"):
        train_words(tmp_path / "out", data=silent, eval_strategy="steps")


OLD = Version(transformers.__version__) < Version("5.9")


@pytest.mark.skipif(OLD, reason="5.8 cannot resume several processes of a CPU (docs/using.md)")
def test_two_processes_and_split_weights_train_the_same(worded, tmp_path):
    """One process, two, and two that split their weights; killed and resumed the other way."""
    numbers, data = count(), tmp_path / "whole"  # without damage: which spare replaces a bad product depends on ranks
    build_mini(data, MiniSize(products=13, test_products=5, distractors=5, image_size=32), processes=1)
    flags = as_flags(
        model=worded, data=data, condition="text", text_from=BOTH, max_steps=4, phase1_steps=1, use_cpu=True,
        learning_rate=1e-3, logging_steps=1, save_steps=1, bf16=False, disable_tqdm=True, report_to="none",
        dataloader_num_workers=0, resume_from_checkpoint="auto", eval_strategy="steps", eval_steps=2,
    )  # fmt: skip

    with forks_of(SCRIPT) as ask:

        def run(folder, processes, fault="none", at=0, **more):
            sizes = as_flags(output_dir=folder / "model", per_device_train_batch_size=6 // processes, **more)
            statuses, said = ask(folder / f"log{next(numbers)}", processes, fault, at, [*flags, *sizes])
            assert fault != "none" or not any(statuses), said[-9000:]
            last = f"checkpoint-{4 if fault == 'none' else at - 1}"
            state = json.loads((folder / "model" / last / "trainer_state.json").read_text())
            return [entry["loss"] for entry in state["log_history"] if "loss" in entry]

        folders = [tmp_path / name for name in ("one", "two", "split")]
        for folder in folders:
            folder.mkdir()
        one, two = run(folders[0], 1), run(folders[1], 2)
        run(folders[2], 2, fault="kill", at=3, shard_weights=True)
        split = run(folders[2], 2)
    assert len(one) == 4 and two == pytest.approx(one, rel=1e-3) and split == two
    weights = [(folder / "model/model.safetensors").read_bytes() for folder in folders[1:]]
    assert weights[0] == weights[1]


def test_an_encoder_of_its_own_is_fetched_for_the_store_and_stays_out_of_the_checkpoint(
    train_words, tmp_path, monkeypatch
):
    """As the published textual model: a Sentence-T5 whose embedding is the token itself."""
    pytest.importorskip("sentence_transformers")
    theirs, encoder = tiny_sentence_encoder(tmp_path, "t5", "mean", (32, torch.nn.Identity))
    local = {"text_encoder": encoder, "text_encoder_in_checkpoint": False, "max_steps": 2}
    with pytest.raises(ValueError, match="a folder that other machines lack: leave --text_encoder_in_checkpoint out"):
        monkeypatch.setattr("train_hf.open_repository", lambda repo, *_: f"me/{repo}")
        train_words(tmp_path / "none", push_to_hub=True, **local)
    assert not (tmp_path / "none/checkpoint-2").exists()
    train_words(tmp_path / "run", **local)
    weights = load_file(tmp_path / "run/model.safetensors")
    assert not any("text_encoder" in name or name == "condition_projection.weight" for name in weights)
    expected = theirs.encode(["Bags", "Feet"], convert_to_tensor=True).cpu()
    torch.testing.assert_close(weights["category_text_embeds"][:2], expected, atol=1e-5, rtol=0)
    folder = str(tmp_path / "run")
    assert Encoder(load_model(folder), "text").sentences(["Bags"]).sub(expected[:1]).abs().max() < 1e-5
    assert "sentences, fetched at the first text |" in (tmp_path / "run/README.md").read_text()
    shutil.rmtree(encoder)
    named = Encoder(load_model(folder), "category")
    assert named.embed([np.zeros((3, 32, 32), np.uint8)], ["Bags"]).shape == (1, 16), "names need no encoder"
    with pytest.raises(OSError, match="sentences"):
        Encoder(load_model(folder), "text").sentences(["Bags"])


def test_a_folder_s_encoder_travels_in_the_checkpoint_and_a_killed_run_goes_on_with_it(train_words, tmp_path):
    """It has a weight of two names, one of which is saved; no file says where on this machine it lay."""
    pytest.importorskip("sentence_transformers")
    theirs, encoder = tiny_sentence_encoder(tmp_path, "t5", "mean", (32, torch.nn.Identity))
    flags = {"text_encoder": encoder, "text_from": "categories", "save_steps": 2, "max_steps": 4}
    losses = train_words(tmp_path / "run", **flags)
    checkpoint = tmp_path / "run/checkpoint-2"
    assert train_words(tmp_path / "again", **flags, resume_from_checkpoint=checkpoint) == losses
    shutil.rmtree(encoder)
    for name in ("config.json", "README.md"):
        told = (tmp_path / "run" / name).read_text()
        assert str(tmp_path) not in told and "sentences" in told
    expected = theirs.encode(["the red bag"], convert_to_tensor=True).cpu()
    found = Encoder(load_model(str(tmp_path / "run")), "text").sentences(["the red bag"])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
