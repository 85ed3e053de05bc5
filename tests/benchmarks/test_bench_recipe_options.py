"""A run that is kept is taken for no other one; differences are paired, to the row that was asked for."""

import json

import pytest

HITS = {"published": [[0, 1, 0, 1], [0, 0, 0, 1]], "twice the rate": [[1, 1, 0, 1], [0, 0, 0, 0]]}


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend("benchmarks")
    import bench_recipe_options

    return bench_recipe_options


@pytest.fixture
def trained(bench, monkeypatch):
    """The recipes that were trained; what a run "gives" is what HITS says of its rate and seed."""
    recipes = []

    def test(folder, start, data):
        name = "published" if recipes[-1]["learning_rate"] == 1e-3 else "twice the rate"
        hits = HITS[name][recipes[-1]["seed"]]
        return {"hits": hits, "R@10": 50.0, "category": 60.0, "unconditioned": 7.0, "moved": 0.25}

    monkeypatch.setattr(bench, "train", lambda recipe, folder, name: recipes.append(recipe))
    monkeypatch.setattr(bench, "test", test)
    return recipes


def drawing(folder, products):
    folder.mkdir()
    (folder / "mini.json").write_text(json.dumps({"products": products}))
    return str(folder)


def test_a_kept_run_is_of_its_data_its_steps_and_its_recipe(bench, trained, tmp_path, monkeypatch, capsys):
    small, large = drawing(tmp_path / "small", 128), drawing(tmp_path / "large", 256)

    def ran(*flags):
        before = len(trained)
        bench.main([*flags, "--out", str(tmp_path / "out"), "--seeds", "1", "--jobs", "1", "--only", "published"])
        return len(trained) - before

    assert ran("--data", small, "--steps", "60") == 1
    assert ran("--data", small, "--steps", "60") == 0
    assert ran("--data", large, "--steps", "60") == 1
    assert ran("--data", small, "--steps", "90") == 1
    (tmp_path / "small").rename(tmp_path / "moved")
    assert ran("--data", str(tmp_path / "moved"), "--steps", "60") == 0
    monkeypatch.setitem(bench.PUBLISHED, "learning_rate", 3e-3)
    assert ran("--data", str(tmp_path / "moved"), "--steps", "60") == 1


def test_differences_are_to_the_row_that_was_asked_for(bench, trained, tmp_path, capsys):
    flags = ["--data", drawing(tmp_path / "data", 128), "--out", str(tmp_path / "out"), "--seeds", "2", "--jobs", "1"]
    bench.main([*flags, "--only", "twice the rate"])
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.startswith("published ") and first.split()[1] == "37.5"
    assert second.startswith("twice the rate ") and "  +0.0 [" in second and second.endswith("]  +25.0, -25.0")
    bench.main([*flags, "--only", "published", "--against", "twice the rate"])
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.startswith("twice the rate ") and second.endswith("]  -25.0, +25.0")
    assert len(trained) == 4


def test_what_cannot_be_trained_is_refused_before_anything_is(bench, trained, tmp_path, capsys):
    asked = ["--out", str(tmp_path / "out"), "--only", "both"]
    with pytest.raises(SystemExit):
        bench.main([*asked, "--data", drawing(tmp_path / "data", 1_000_000)])
    assert "leave no pass for a second stage; take more steps, or fewer products" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench.main([*asked, "--data", str(tmp_path / "none")])
    assert "none/mini.json" in capsys.readouterr().err
    assert not trained
