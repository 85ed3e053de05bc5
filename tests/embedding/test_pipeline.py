"""The embedding path against the processor and the model called plainly, image by image."""

import io
import json
import threading
import time

import numpy as np
import pytest
import torch
from made import tiny_clip
from PIL import Image

from lrvsf.data.images import BadImageCounter
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding import encoder as encoder_module
from lrvsf.embedding import pipeline as embed
from lrvsf.embedding.encoder import Encoder, load_model
from lrvsf.embedding.parts import Distractors, Products
from lrvsf.embedding.pipeline import embed_ranges, embed_share, prefetch_map
from processing_condvit import CondViTProcessor


def plainly(model, images, categories=None):
    """The naive twin: one image at a time, through the processor."""
    processor = CondViTProcessor(model.config.categories, size=model.config.image_size)
    rows = []
    for i, data in enumerate(images):
        inputs = processor(Image.open(io.BytesIO(data)), categories and categories[i], return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**inputs).image_embeds)
    return torch.cat(rows)


@pytest.mark.parametrize("conditioning", ["category", "none"])
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_products_and_distractors(make_test_set, tiny_model, conditioning, batch_size):
    test_set = ProductTestSet(make_test_set(products=7, distractors=11))
    encoder = Encoder(tiny_model, conditioning)
    products, distractors = (embed_share(encoder, part(test_set), batch_size) for part in (Products, Distractors))
    rows = list(test_set.products())
    categories = [row.category for row in rows] if conditioning == "category" else None
    query = plainly(tiny_model, [row.query_image for row in rows], categories)
    target = plainly(tiny_model, [row.target_image for row in rows])
    distractor = plainly(tiny_model, [image for _, image in test_set.distractors()])
    torch.testing.assert_close(products.embeds["query"], query, rtol=0, atol=1e-5)
    torch.testing.assert_close(products.embeds["target"], target, rtol=0, atol=1e-5)
    torch.testing.assert_close(distractors.embeds["distractor"], distractor, rtol=0, atol=1e-5)
    assert products.rows == list(range(7)) and distractors.rows == list(range(11))


def test_ranges_are_read_in_one_go_where_they_meet_and_cut_the_batches(make_test_set, tiny_model, monkeypatch):
    """Each range gives the bits that it gives alone."""
    part = Distractors(ProductTestSet(make_test_set(products=2, distractors=40, bad={"jpg": {11: b""}})))
    encoder, counter = Encoder(tiny_model, "none"), BadImageCounter()
    ranges = [(2, 9), (9, 9), (9, 14), (14, 16), (20, 31), (31, 40)]
    alone = [next(embed_ranges(encoder, part, [of], 4, counter)) for of in ranges]
    read, items = [], part.items
    monkeypatch.setattr(part, "items", lambda start, stop: read.append((start, stop)) or items(start, stop))
    sizes, plain = [], encoder.embed
    monkeypatch.setattr(encoder, "embed", lambda pixels: sizes.append(len(pixels)) or plain(pixels))
    together = list(embed_ranges(encoder, part, ranges, 4, counter))
    assert read == [(2, 16), (20, 40)] and sizes == [4, 3, 4, 2, 4, 4, 3, 4, 4, 1]
    for one, other in zip(alone, together, strict=True):
        assert one.rows == other.rows and torch.equal(one.embeds["distractor"], other.embeds["distractor"])
    assert together[2].rows == [9, 10, 12, 13] and together[2].bad == [(11, "empty")]


def test_bad_images_are_skipped_counted_and_named(make_test_set, tiny_model, caplog):
    bad = {"SIMPLE_IMG": {2: b""}, "COMPLEX_IMG": {4: b"<html>"}, "jpg": {0: None, 9: b"GIF89a"}}
    test_set = ProductTestSet(make_test_set(products=7, distractors=11, bad=bad))
    encoder = Encoder(tiny_model, "category")
    products, distractors = (embed_share(encoder, part(test_set), 4) for part in (Products, Distractors))
    assert products.rows == [0, 1, 3, 5, 6] and products.skipped == {"empty": 1, "not an image": 1}
    assert distractors.rows == [*range(1, 9), 10] and sum(distractors.skipped.values()) == 2
    assert len(products.embeds["query"]) == len(products.embeds["target"]) == 5
    assert "row 2 of the products" in caplog.text and "row 0 of the distractors" in caplog.text


def test_bf16_stays_near_float32_and_normalised(make_test_set, tiny_model):
    test_set = ProductTestSet(make_test_set(products=1, distractors=6))
    full, half = (
        embed_share(Encoder(tiny_model, "none", bf16=bf16), Distractors(test_set), 6).embeds["distractor"]
        for bf16 in (False, True)
    )
    assert half.dtype == torch.float32 and not torch.equal(full, half)
    torch.testing.assert_close(half.norm(dim=1), torch.ones(6), rtol=0, atol=1e-6)
    assert (full * half).sum(1).min() > 0.999


def test_conditioning_must_fit_the_model(make_model):
    with pytest.raises(ValueError, match="asked of a model with condition='none'"):
        Encoder(make_model(condition="none"), "category")
    with pytest.raises(ValueError, match="conditioning=\"text\" was asked of a model with condition='category'"):
        Encoder(make_model(), "text")
    with pytest.raises(ValueError, match="'words' is unknown. Use text, category, none"):
        Encoder(make_model(), "words")


def test_a_clip_folder_is_an_unconditioned_baseline(tmp_path, pixel_values):
    clip = tiny_clip()
    clip.save_pretrained(tmp_path / "clip")
    model = load_model(str(tmp_path / "clip")).eval()
    assert model.config.condition == "none"
    with torch.no_grad():
        expected = clip.visual_projection(clip.vision_model(pixel_values).pooler_output)
        got = model(pixel_values=pixel_values).image_embeds
    torch.testing.assert_close(got, torch.nn.functional.normalize(expected, dim=-1), rtol=0, atol=1e-6)


def test_a_condvit_folder_keeps_its_condition(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    assert load_model(str(tmp_path / "model")).config.condition == "category"


def test_the_first_dimensions_are_embeddings_too(tiny_model):
    pixels = list(np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8))
    whole, cut = (Encoder(tiny_model, "category", dims=dims).embed(pixels, ["Bags", "Feet"]) for dims in (None, 5))
    torch.testing.assert_close(cut, whole[:, :5] / whole[:, :5].norm(dim=1, keepdim=True))
    with pytest.raises(ValueError, match="dims=17 must be above 0 and at most the model's 16"):
        Encoder(tiny_model, "category", dims=17)


def test_a_condvit_without_all_its_weights_is_refused(tiny_model, tmp_path):
    weights = {name: value for name, value in tiny_model.state_dict().items() if name != "visual_projection.weight"}
    tiny_model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match="lacks the weights visual_projection.weight; restore its model.safetensors"):
        load_model(str(tmp_path))


def test_a_condvit_whose_weights_are_another_models_or_damaged_is_refused(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**described, "projection_dim": 8}))
    told = r"has visual_projection.weight of \(16, 32\), and config.json says \(8, 32\)"
    with pytest.raises(ValueError, match=told):
        load_model(str(tmp_path))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="its weights cannot be read .* Restore model.safetensors"):
        load_model(str(tmp_path))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        load_model(str(tmp_path))


def test_threads_work_ahead_but_not_far_and_keep_the_order(monkeypatch):
    monkeypatch.setattr(embed, "THREADS", 4)
    started = []

    def slowest_first(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    def items():
        for item in range(30):
            started.append(item)
            yield item

    for seen, (item, future) in enumerate(prefetch_map(slowest_first, items(), ahead=5)):
        assert item == seen and future.result() == item * item
        assert len(started) <= seen + 6
    assert len(started) == 30


def test_threads_end_when_the_consumer_does():
    before = threading.active_count()
    results = prefetch_map(lambda item: item, range(100), ahead=5)
    next(results)
    results.close()
    assert threading.active_count() == before


def test_published_protocols_run_in_float32_unless_asked(monkeypatch):
    monkeypatch.setattr(encoder_module, "has_fast_bf16", lambda device: True)
    cpu = torch.device("cpu")
    asked = {name: encoder_module.runs_in_bf16(None, name, cpu) for name in ("bootstrap", "leaderboard", "paper")}
    assert asked == {"bootstrap": True, "leaderboard": False, "paper": False}
    assert encoder_module.runs_in_bf16(True, "paper", cpu) and not encoder_module.runs_in_bf16(False, "bootstrap", cpu)


@pytest.mark.survives("a config.json that names a stranger's attention kernel", "evaluation chooses, and fetches none")
def test_attention_of_a_config_is_not_obeyed(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "_attn_implementation": "stranger/kernel"}))
    assert load_model(str(tmp_path)).config._attn_implementation == "sdpa"
