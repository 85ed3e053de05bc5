"""The script from its flags to its files, in this process and under `accelerate launch` with two."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from made import as_flags, squares, write_table
from PIL import Image

import evaluate_lrvsf
from lrvsf.data.images import TooMuchDamage
from lrvsf.embedding import fingerprint, store
from lrvsf.embedding.encoder import load_model
from lrvsf.embedding.fingerprint import weights_digest
from lrvsf.evaluation import embedded
from lrvsf.evaluation.stored_folds import convert

ROOT = Path(__file__).parents[1]


@pytest.fixture
def data_root(make_test_set):
    """9 products, one with a broken query, and 31 distractors in two files, two of them broken."""
    return make_test_set(9, 31, bad={"COMPLEX_IMG": {4: b"broken"}, "jpg": {2: b"", 30: b""}})


@pytest.fixture
def flags(tmp_path, data_root, tiny_model):
    tiny_model.save_pretrained(tmp_path / "model")
    places = as_flags(model=tmp_path / "model", data_root=data_root, batch_size=4)
    return [*places, *as_flags(gallery_sizes=[10, 29], folds=3, seed=5)]


def test_one_process(flags, tmp_path, capsys):
    evaluate_lrvsf.main([*flags, "--output_dir", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert Image.open(tmp_path / "out" / "recall.png").format == "PNG"
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"embeds", "queries.parquet", "results.json", "recall.png", "categories.png", "ranks.png"}
    printed = capsys.readouterr().out
    assert "category, 16 dimensions" in printed and "3 folds of 8 products, seed 5" in printed

    assert list(results["galleries"]) == ["10", "29"]
    for gallery in results["galleries"].values():
        assert list(gallery["recall"]) == ["1", "5", "10", "20", "50"]
        means = [gallery["recall"][k]["mean"] for k in gallery["recall"]]
        assert means == sorted(means) and means[0] >= 0 and means[-1] == 1  # 50 is beyond the gallery
    facts = {"protocol": "bootstrap", "seed": 5, "folds": 3, "products_per_fold": 8, "gallery_sizes": [10, 29]}
    facts |= {"n_products": 8, "n_distractors": 29, "conditioning": "category", "embedding_dim": 16}
    facts |= {"skipped": {"products": {"not an image": 1}, "distractors": {"empty": 2}}}
    facts |= {"model_weights": weights_digest(load_model(str(tmp_path / "model")))}
    assert {key: results[key] for key in facts} == facts
    assert set(results["versions"]) == {"python", "torch", "transformers", "numpy"}


def test_all_pages_of_a_run_read_and_hash_once(flags, tmp_path, monkeypatch):
    """The weights are hashed and the products read by the first who asks; blocks of distractors are read as needed."""
    calls = []

    def count(owner, name):
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, **named: calls.append(name) or plain(*given, **named))

    count(fingerprint, "weights_digest")
    count(store.EmbeddingStore, "whole")  # all queries, all targets
    count(embedded, "join_categories")
    pages = ["--conditioning_page", "1", "--sheet", "3", "--attention", "3"]
    for protocol in (flags[6:], ["--protocol", "paper"]):
        evaluate_lrvsf.main([*flags[:6], *protocol, *pages, "--output_dir", str(tmp_path / protocol[0])])
        assert sorted(calls) == ["join_categories", "weights_digest", "whole", "whole"]
        calls.clear()


RUNS_ALL = """
import json, sys
sys.path.insert(0, {root!r})
import evaluate_lrvsf
from accelerate import PartialState
from lrvsf.embedding import store
store.ROWS = 8
end, PartialState.destroy_process_group = PartialState.destroy_process_group, lambda self: None
for flags in json.loads({runs!r}):  # one after the other among the same processes
    evaluate_lrvsf.main(flags)
end(PartialState())
"""


def test_two_processes_give_the_same_results(flags, tmp_path, monkeypatch):
    """Each embeds its slices; the counts, summed, and the lists, merged, are those of one process. Both protocols."""
    folds = {
        "test_subsets": [["p1", "p1"], ["p7", "p3"]],
        "dist_4_subsets": [["d0", "d3", "d6", "d9"], ["d20", "d5", "d5", "d29"]],
    }
    (tmp_path / "ids.pkl").write_bytes(pickle.dumps(folds))
    convert(tmp_path / "ids.pkl", tmp_path / "folds.safetensors")
    paper = [*flags[:6], "--protocol", "paper", "--stored_folds", str(tmp_path / "folds.safetensors"), "--bf16", "0"]
    # In float32 the composition of batches moves no rank.
    both = {"bootstrap": [*flags, "--sheet", "3", "--conditioning_page", "1", "--bf16", "0"], "paper": paper}
    monkeypatch.setattr(store, "ROWS", 8)  # two shards of products, four of distractors
    for name, given in both.items():
        evaluate_lrvsf.main([*given, "--output_dir", str(tmp_path / "one" / name)])
    runs = [[*given, "--output_dir", str(tmp_path / "two" / name)] for name, given in both.items()]
    (tmp_path / "runs_all.py").write_text(RUNS_ALL.format(root=str(ROOT), runs=json.dumps(runs)))
    flags_of_launch = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *flags_of_launch.split()]
    command = [*launcher, "--main_process_port", "0", str(tmp_path / "runs_all.py")]
    alone = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # on the CPU wherever the test runs
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, cwd=tmp_path, env=alone)
    assert run.returncode == 0, run.stderr
    assert "16/16" in run.stderr  # the main process took two shards of the 31 distractors
    assert run.stdout.count("R@1  ") == 1 + 4  # each table once
    for name in both:
        one, two = (json.loads((tmp_path / way / name / "results.json").read_text()) for way in ("one", "two"))
        assert one == two
        tables = [pq.read_table(tmp_path / way / name / "queries.parquet") for way in ("one", "two")]
        assert tables[0].equals(tables[1]) and len(tables[0]) >= 8
    one, two = ((tmp_path / way / "bootstrap/sheet.html").read_text() for way in ("one", "two"))
    assert one == two and one.count("<article") >= 3


def test_conditioning_none_and_baseline_flags(flags, tmp_path):
    evaluate_lrvsf.main([*flags, "--output_dir", str(tmp_path / "out"), "--conditioning", "none", "--bf16", "true"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["conditioning"] == "none" and results["compute_dtype"] == "bfloat16"


def test_both_limits_of_bad_images_are_flags(flags, data_root, tmp_path):
    flags = [*flags, "--output_dir", str(tmp_path / "out")]
    with pytest.raises(TooMuchDamage, match="1  not an image\n1 in a row, the last one row 4 of the products"):
        evaluate_lrvsf.main([*flags, "--max_bad_in_a_row", "1"])
    (data_root / "distractors/1.parquet").unlink()
    write_table(data_root / "distractors/0.parquet", {"jpg": [b""] * 5 + [squares(i) for i in range(29)]})
    flags[-1] += "-repaired"  # the embeddings of the products stay behind, they are of other data
    with pytest.raises(TooMuchDamage, match="5 of 34 distractors are bad:\n.*5  empty\nThat is more than 14.0%"):
        evaluate_lrvsf.main([*flags, "--max_bad_fraction", "0.14"])
    evaluate_lrvsf.main([*flags, "--max_bad_fraction", "0.15"])


def test_too_large_a_gallery_ends_without_files(flags, tmp_path):
    with pytest.raises(ValueError, match="gallery_sizes has 500, but only 31 distractors"):
        evaluate_lrvsf.main([*flags, "--output_dir", str(tmp_path / "out"), "--gallery_sizes", "10", "500"])
    assert not (tmp_path / "out").exists()


def test_leaderboard_with_draws_from_a_file(flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lrvsf.evaluation.bootstrap.LEADERBOARD_SIZES", (20, 50))
    torch.save(torch.tensor([[0, 8, 4], [1, 1, 2]]), tmp_path / "bootstrapped_indices.pt")
    of_the_protocol = ["--protocol", "leaderboard", "--product_folds", str(tmp_path / "bootstrapped_indices.pt")]
    evaluate_lrvsf.main([*flags[:6], *of_the_protocol, "--bf16_ranks", "--output_dir", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["folds"] == 2 and results["missing_draws"] == {"products": 1} and results["bf16_ranks"]
    assert "* 50: drawn with repeats from only 29 distractors" in capsys.readouterr().out
