"""The scripts as the commands of an installed package: what holds for `python train_hf.py` holds for `lrvsf-train`."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import prepare_lrvsf as prepare
import publish_lrvsf as publish
from lrvsf import entry
from lrvsf.command import called

ROOT = Path(__file__).parent.parent
MODEL = str(ROOT / "assets/mini-condvit")
SCRIPTS = {
    "lrvsf-prepare": "prepare_lrvsf",
    "lrvsf-train": "train_hf",
    "lrvsf-evaluate": "evaluate_lrvsf",
    "lrvsf-search": "search_catalog",
    "lrvsf-publish": "publish_lrvsf",
}
STEPS = {name: [] for name in SCRIPTS} | {"lrvsf-evaluate": ["compare"]}
STEPS |= {
    f"lrvsf-{one.__name__.partition('_')[0]}": [step.__name__ for step in one.STEPS] for one in (prepare, publish)
}


def test_each_script_is_installed_as_a_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    commands = {name: place.removeprefix("lrvsf.entry:") for name, place in project["project"]["scripts"].items()}
    assert commands.keys() == SCRIPTS.keys()
    for name, function in commands.items():
        assert name == f"lrvsf-{function}" and callable(getattr(entry, function))
        assert SCRIPTS[name] in project["tool"]["setuptools"]["py-modules"]


def test_a_command_is_named_as_it_can_be_called_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert [called(name.removeprefix("lrvsf-")) for name in SCRIPTS] == [
        ["python", f"{script}.py"] for script in SCRIPTS.values()
    ]
    monkeypatch.chdir(tmp_path)
    assert called("train") == ["lrvsf-train"]


# Runs each command with each list of words, and says what it printed, its exit status and what it imported.
CALLS = """
import contextlib, io, json, sys
from lrvsf import entry
said = []
for name, words in json.loads(sys.argv[1]):
    sys.argv = ["/usr/bin/" + name, *words]
    out, status = io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            getattr(entry, name.removeprefix("lrvsf-"))()
    except SystemExit as end:
        status = end.code
    said.append([status, out.getvalue()])
slow = [name for name in ("torch", "transformers") if name in sys.modules]
print(json.dumps([said, slow]))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """{(command, first words): (exit status, output)}, and the slow packages that were imported."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    place = ["--model", MODEL, "--output_dir", "x"]
    calls = [(name, [*step, "--help"]) for name, steps in STEPS.items() for step in ([], *([step] for step in steps))]
    calls += [(name, ["--nonsense"]) for name in SCRIPTS]
    calls += [("lrvsf-train", [*place, "--data", "nowhere"]), ("lrvsf-evaluate", [*place, "--data_root", "nowhere"])]
    calls += [("lrvsf-publish", ["convert", "nowhere", "x"]), ("lrvsf-publish", ["push", "nowhere", "me/x"])]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    words = [sys.executable, "-c", CALLS, json.dumps(calls)]
    done = subprocess.run(words, cwd=elsewhere, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, imported = json.loads(done.stdout)
    said = {(name, *words[:2]): tuple(outcome) for (name, words), outcome in zip(calls, said, strict=True)}
    return said, imported


def test_help_and_mistakes_come_before_torch(outcomes):
    assert outcomes[1] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_fits_80_columns_and_writes_flags_with_underscores(outcomes, name):
    assert outcomes[0][name, "--help"][1].lower().startswith(f"usage: {name} ")
    helps = [outcomes[0][(name, *step, "--help")] for step in ([], *([step] for step in STEPS[name]))]
    for status, text in helps:
        assert status == 0 and max(map(len, text.splitlines())) <= 80, text
        assert not [word for word in text.split() if word.startswith("--") and "-" in word[2:]], text


@pytest.mark.parametrize(
    "name, words, says",
    [
        *((name, ["--nonsense"], f"{name}: .*--nonsense.*--help") for name in SCRIPTS if name != "lrvsf-evaluate"),
        ("lrvsf-train", ["--model", MODEL], "lrvsf-train: nowhere has no train/ folder"),
        (
            "lrvsf-evaluate",
            ["--nonsense"],
            "lrvsf-evaluate: the following arguments are required: --model, --data_root",
        ),
        ("lrvsf-evaluate", ["--model", MODEL], "lrvsf-evaluate: nowhere has no products.parquet"),
        ("lrvsf-publish", ["convert", "nowhere"], "lrvsf-publish convert: There is no file or folder nowhere"),
        ("lrvsf-publish", ["push", "nowhere"], "lrvsf-publish push: nowhere is no finished model"),
    ],
)
def test_a_refusal_is_one_line_and_exit_status_2(outcomes, name, words, says):
    status, text = outcomes[0][(name, *words)]
    assert status == 2 and text.count("\n") == 1
    assert re.match(says, text), text
