"""Queries that captions ask for: all protocols, the store, pages; a text model answers names and plain pictures too."""

import json

import pytest
import torch
from made import as_flags, edit_rows, tiny_clip, tiny_tokenizer
from PIL import Image

import evaluate_lrvsf
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder, load_model
from lrvsf.embedding.parts import Products
from lrvsf.embedding.pipeline import embed_share
from lrvsf.evaluation.embedded import EmbeddedTestSet
from lrvsf.evaluation.pages.conditions import BY_TEXT, measure_conditions, write_conditions
from modeling_condvit import CondViTModel
from processing_condvit import CondViTProcessor

CAPTIONS = ["the red bag", "a blue shoe", "the blue bag", "a photo of the shoe"]


@pytest.fixture
def model(tmp_path):
    """The folder of a CondViT that reads texts by its CLIP's own tower."""
    tiny_clip().save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    clip = str(tmp_path / "clip")
    CondViTModel.from_clip(clip, text_encoder=clip, text_encoder_in_checkpoint=True).save_pretrained(tmp_path / "model")
    CondViTProcessor(size=32, tokenizer=tiny_tokenizer()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def root(make_test_set):
    """A test set whose captions differ from row to row; row 5 has none."""
    root = make_test_set()

    def caption(rows):
        for number, row in enumerate(rows):
            row["blip2_caption1"] = None if number == 5 else CAPTIONS[number % 4]

    edit_rows(root / "products.parquet", caption, row_group_size=5)
    return root


def test_a_query_s_embedding_is_what_the_processor_and_the_model_give_for_its_caption(model, root):
    loaded, processor, test_set = load_model(str(model)), CondViTProcessor.from_pretrained(model), ProductTestSet(root)
    assert test_set.texts("the {}")[4:7] == [CAPTIONS[0], "the Neck", CAPTIONS[2]]
    embedded = embed_share(Encoder(loaded, "text"), Products(test_set), 5).embeds["query"]
    for product, row in zip(test_set.products(), embedded, strict=True):
        inputs = processor(product.query_image, texts=product.caption or product.category, return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(row[None], loaded(**inputs).image_embeds, atol=1e-5, rtol=0)


def test_conditionings_differ_in_queries_only_and_in_what_the_store_says(model, root, make_store):
    loaded, test_set = load_model(str(model)), ProductTestSet(root)
    found = {}
    for conditioning in ("text", "category", "none"):
        data = EmbeddedTestSet(make_store(Encoder(loaded, conditioning), test_set))
        data.fill()
        found[conditioning] = data
    assert all(torch.equal(found["text"].targets, other.targets) for other in found.values())
    queries = [data.queries for data in found.values()]
    assert all(not torch.allclose(one, other) for one, other in ((queries[0], queries[1]), (queries[1], queries[2])))
    assert found["text"].facts["queries_without_caption"] == 1
    assert "queries_without_caption" not in found["category"].facts
    facts = json.loads((found["text"]._store.folder / "manifest.json").read_text())["made_with"]
    assert {"data.texts", "model.text_encoder", "model.text_template"} <= set(facts)
    assert not {"name", "revision"} & set(facts["model.text_encoder"]), "its weights are the model's, whatever its name"
    before = facts["data.texts"]
    edit_rows(root / "products.parquet", lambda rows: rows[0].update(blip2_caption1="the red bat"), row_group_size=5)
    store = make_store(Encoder(loaded, "text"), ProductTestSet(root))
    EmbeddedTestSet(store).fill()
    assert store.made_with["data.texts"] != before


@pytest.mark.parametrize("protocol", ["bootstrap", "leaderboard", "paper"])
def test_every_protocol_asks_by_text(model, root, tmp_path, protocol, capsys):
    places = {"model": model, "data_root": root, "output_dir": tmp_path / "out", "protocol": protocol}
    more = {"gallery_sizes": [9, 40], "folds": 3, "sheet": 2} if protocol == "bootstrap" else {}
    evaluate_lrvsf.main(as_flags(**places, **more))
    assert json.loads((tmp_path / "out/results.json").read_text())["conditioning"] == "text"
    if more:
        page = (tmp_path / "out/sheet.html").read_text()
        assert page.count("asked by <b>") >= 2 and any(f"asked by <b>{caption}</b>" in page for caption in CAPTIONS)
    assert "custom code" not in capsys.readouterr().out, "a model's own folder is no stranger's"


def test_the_page_on_conditions_asks_by_captions_and_by_names(model, root, make_store, tmp_path):
    """Against full matrices; the model has no number for a category of the test set, as its name is enough."""
    loaded = load_model(str(model))
    loaded.config.categories = ["Feet", "Bags"]
    data = EmbeddedTestSet(make_store(Encoder(loaded, "text"), ProductTestSet(root)))
    found = measure_conditions(data, batch_size=5)
    assert found["categories"] == ["Feet", "Bags", "Neck"] and list(found["ways"]) == list(BY_TEXT)
    encoder, products = data.encoder, list(data.test_set.products())
    pixels = [encoder.pixels(product.query_image) for product in products]
    items = torch.cat([data.targets, *(embeds for embeds, _ in data.blocks())]).double()
    for way, asked in (
        (BY_TEXT[0], [product.caption or product.category for product in products]),
        (BY_TEXT[1], [product.category for product in products]),
        (BY_TEXT[2], None),
    ):
        scores = encoder.embed(pixels, asked).double() @ items.T
        ranks = 1 + (scores > scores.diagonal()[:, None]).sum(1)
        assert found["ways"][way]["recall"]["10"] == pytest.approx((ranks <= 10).double().mean().item())
    assert list(found["gain"]) == list(BY_TEXT[1:]) and list(found["confusion"]) == list(BY_TEXT[:3])
    write_conditions(json.loads(json.dumps(found)), tmp_path / "page.html", "words")
    page = (tmp_path / "page.html").read_text()
    assert "Four ways to ask" in page and "gained by the caption" in page and "with every category, by its name" in page


def test_attention_is_drawn_under_texts_or_names(model, root, tmp_path):
    places = {"model": model, "data_root": root, "gallery_sizes": 9, "folds": 2, "attention": [0, 1]}
    for name, shown, columns in (
        ("texts", {"attention_texts": ["the red bag", "a blue shoe of Feet of Head"]}, 2),
        ("names", {"attention_categories": ["Bags"]}, 1),
    ):
        evaluate_lrvsf.main(as_flags(**places, **shown, output_dir=tmp_path / name))
        width, height = Image.open(tmp_path / name / "attention.png").size
        assert width == 3 * 8 + 3 * 128 + 120 + columns * 128
        assert height == (columns + 1) * 24 + 2 * (3 * 128 + 8)  # the second text has two lines, the name one
    with pytest.raises(ValueError, match="attention_texts=.* needs --attention, the rows to draw, and no"):
        evaluate_lrvsf.main(
            as_flags(**places | {"attention_texts": "bag", "attention_categories": "Bags"}, output_dir=tmp_path)
        )


def test_a_product_that_no_words_ask_for_is_refused_before_anything_is_embedded(model, root, make_store):
    edit_rows(root / "products.parquet", lambda rows: rows[5].update(CATEGORY=None), row_group_size=5)
    data = EmbeddedTestSet(make_store(Encoder(load_model(str(model)), "text"), ProductTestSet(root)))
    with pytest.raises(ValueError, match="row 5: there is neither a caption .* --conditioning none"):
        data.fill()
    assert not (data._store.folder / "manifest.json").exists()


def test_one_model_can_be_asked_by_either(model):
    encoder = Encoder(load_model(str(model)), "text")
    named = encoder.asked_by("category")
    pixels = [encoder.pixels_of(Image.new("RGB", (9, 9)))] * 2
    torch.testing.assert_close(named.embed(pixels, ["Bags", "Feet"]), encoder.embed(pixels, ["Bags", "Feet"]))
    assert encoder.conditioning == "text" and named.model is encoder.model
    with pytest.raises(ValueError, match="'words' is unknown"):
        encoder.asked_by("words")


def test_a_name_that_is_not_told_from_another_is_refused(model):
    model = load_model(str(model))
    with pytest.warns(UserWarning, match="cannot tell"):
        model.add_categories(["Rings", "Nails"])  # no word of the tokenizer's
    encoder = Encoder(model, "category")
    assert encoder.condition(["Bags"])["category_indices"].tolist() == [0]
    with pytest.raises(ValueError, match="one embedding to 'Rings' and others, so that the name does not say"):
        encoder.condition(["Bags", "Rings"])
