"""The examples of docs/using.md, run as they stand, in a process of their own."""

import json

import pytest
from examples import ROOT, examples, run_script
from made import encode, noise, write_file, write_teller, write_test_set

import evaluate_lrvsf
from lrvsf.embedding.encoder import load_model
from processing_condvit import CondViTProcessor

(LOAD,) = examples("docs/using.md", "Using a model", 1)
(EVALUATE,) = examples("docs/using.md", "sentence-transformers", 1)
(TURN,) = examples("docs/using.md", "Images", 1)
TOLD = """
import json
import numpy as np

found = {
    "query": queries_of_the_example,
    "products": products,
    "pipeline": [rows[0] for rows in extract(["a.jpg", "b.jpg"], categories="Bags", batch_size=2)],
    "recalls": recalls,
}
found = {name: value if isinstance(value, dict) else np.asarray(value).tolist() for name, value in found.items()}
asked = {"image": "a.jpg", "text": "Bags"}
for wrong in ["Bags"], [asked, "b.jpg"], [{**asked, "text": " "}], [{"image": "a.jpg", "category": "Bags"}]:
    try:
        sentences.encode_query(wrong)
        raise SystemExit(f"{wrong} was taken")
    except ValueError:
        pass
try:
    extract(["a.jpg", "b.jpg"], categories=["Bags", "Head"])
    raise SystemExit("a list was taken")
except ValueError as error:
    assert "Images: 1, categories: ['Bags', 'Head']" in str(error), error
open("found.json", "w").write(json.dumps(found))
"""


@pytest.fixture(scope="module", params=["category", "text"])
def place(request, tmp_path_factory):
    """A folder with a tiny model, its test set and the pictures that the examples name."""
    folder = tmp_path_factory.mktemp(request.param)
    write_teller(folder / "model", request.param)
    write_test_set(folder / "data/mini/test", products=20, distractors=45)
    for number, name in enumerate(("product", "scene", "a", "b", "photo")):
        write_file(folder / f"{name}.jpg", encode(noise(40 + number, 30, number), "JPEG"))
    return folder, request.param


def test_each_door_gives_the_models_embedding_and_the_evaluator_our_recall(place):
    folder, condition = place
    named = 'path = "model"\nimages = scenes = ["a.jpg", "b.jpg"]\n'
    script = named + LOAD + "\nqueries_of_the_example = queries\n" + EVALUATE + TOLD
    if condition == "text":  # "takes `texts=` wherever `categories=` stands above"
        script = script.replace("categories", "texts")
    run_script(script, folder, ROOT)
    found = json.loads((folder / "found.json").read_text())
    model, processor = load_model(str(folder / "model")), CondViTProcessor.from_pretrained(folder / "model")
    word = "categories" if condition == "category" else "texts"

    def embed(pictures, words=None):
        asked = {} if words is None else {word: words}
        pictures = [str(folder / f"{name}.jpg") for name in pictures]
        return model(**processor(pictures, **asked)).image_embeds.tolist()

    for name, expected in {
        "query": embed(["scene", "scene"], ["Bags", "Head"]),
        "products": embed(["product"]),
        "pipeline": embed("ab", "Bags"),
    }.items():
        assert found[name] == [pytest.approx(row, abs=1e-5) for row in expected], name

    flags = {"model": folder / "model", "data_root": folder / "data/mini/test", "output_dir": folder / "results"}
    flags |= {"protocol": "paper", "store_dtype": "float32", "conditioning": "category"}
    flags |= {"allow_unmatched_categories": True}
    evaluate_lrvsf.main([str(word) for name, value in flags.items() for word in (f"--{name}", value)])
    gallery = json.loads((folder / "results/results.json").read_text())["galleries"]["45"]
    assert gallery["ties"]["tied_queries"] == 0
    for k in (1, 5, 10):
        assert found["recalls"][f"cosine_recall@{k}"] == pytest.approx(gallery["recall"][str(k)]["mean"], abs=1e-12)


def test_the_example_that_turns_a_photo(tmp_path, monkeypatch):
    write_file(tmp_path / "photo.jpg", encode(noise(), "JPEG"))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(TURN, names)
    assert names["image"].size == (40, 30)
