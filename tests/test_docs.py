"""Whatever README and docs name is there: files, tests, modules, steps, flags, links. Every Python example is run."""

import ast
import re
import tomllib
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from examples import ROOT, blocks_of

import prepare_lrvsf
import publish_lrvsf
import search_catalog
from lrvsf.evaluation.arguments import STEPS
from lrvsf.flags import FlagParser
from lrvsf.mini import train_clip
from lrvsf.steps import program_of

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "lrvsf|tests|docs|recipes|tools|benchmarks|metrics|assets|spaces|contrib|deploy"
READMES = [path for folder in FOLDERS.split("|") for path in sorted(ROOT.glob(f"{folder}/*/README.md"))]
SOURCES = [*ROOT.glob("*.py"), *(path for folder in FOLDERS.split("|") for path in ROOT.glob(f"{folder}/**/*.py"))]
NAMES = {path.relative_to(ROOT).as_posix() for path in SOURCES}


def code(page):
    """What stands in backticks and in fenced blocks."""
    text = page.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return blocks + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_tests_are_there(page):
    for text in code(page):
        for path in re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./*-]*[\w*]", text):
            assert any(ROOT.glob(path)), path
        for name in re.findall(r"(?<![\w*.])[\w/]+\.py\b", text):  # a page on a room leaves the room's name out
            assert name in NAMES or any(other.endswith(f"/{name}") for other in NAMES), name
        for path, test in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text):
            assert re.search(rf"def {test}\b", (ROOT / path).read_text()), f"{path}::{test}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_and_what_they_hold_are_there(page):
    for dotted in {name for text in code(page) for name in re.findall(r"(?<![\w/.])lrvsf(?:\.\w+)+", text)}:
        parts = dotted.split(".")
        module = next(n for n in range(len(parts), 0, -1) if ROOT.joinpath(*parts[:n]).with_suffix(".py").is_file()
                      or ROOT.joinpath(*parts[:n]).is_dir())  # fmt: skip
        path = ROOT.joinpath(*parts[:module]).with_suffix(".py")
        held = parts[module:]
        assert not held or re.search(rf"^(def |class |){held[0]}\b", path.read_text(), re.MULTILINE), dotted


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (str(citation["version"]), citation["license"]) == (project["version"], project["license"])
    assert {"cff-version", "title", "message", "authors"} <= citation.keys()
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def claimed_examples():
    """(page, heading) -> how many Python blocks, of each `examples(page, heading, count)` in the tests' source."""
    calls = (node for path in ROOT.glob("tests/**/*.py") for node in ast.walk(ast.parse(path.read_text())))
    calls = (node for node in calls if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "examples")
    claims = (map(ast.literal_eval, call.args) for call in calls)
    return {(page, heading): count for page, heading, count in claims}


def test_each_python_example_is_run_by_a_test():
    there = Counter()
    for page in (*PAGES, *READMES):
        blocks = blocks_of(page.read_text())
        assert len(blocks) == len(re.findall(r"(```|~~~) *py", page.read_text())), f"{page}: a fence of another form"
        there.update((page.relative_to(ROOT).as_posix(), heading) for heading, _ in blocks)
    assert len(READMES) > 5 and there == claimed_examples()


def test_what_the_library_writes_has_the_examples_that_tests_run():
    """Those of tests/hub/test_card.py and tests/search/exporting/test_database_clients.py."""
    written = {path.name: path.read_text().count("```python") for path in ROOT.glob("lrvsf/**/*.py")}
    expected = {"card.py": 2, "write_parquet.py": 1, "write_lancedb.py": 1}
    assert {name: count for name, count in written.items() if count} == expected


def flags_of(*classes):
    """The options that are fields of some dataclasses, named by (module, name)."""
    return set(FlagParser("", "", *classes)._option_string_actions)


@pytest.fixture(scope="module")
def taken():
    """Script -> step, or "" -> the options that it takes."""
    found = {"train_hf": {}, "evaluate_lrvsf": {}}
    for script in (prepare_lrvsf, publish_lrvsf, search_catalog):
        commands = program_of("", script.STEPS).commands.values()
        found[script.__name__] = {
            one.name: {name for p in one.params for name in p.opts + p.secondary_opts} for one in commands
        }
    found["prepare_lrvsf"]["mini_clip"] = flags_of(*train_clip.CLASSES)
    for step, module in STEPS.items():
        source = Path(find_spec(module).origin).read_text()
        found["evaluate_lrvsf"][step] = set(re.findall(r"add_argument\(\"(--\w+)", source))
    for script, room, classes in (
        ("train_hf", "training", ("ModelArguments", "CondViTTrainingArguments")),
        ("evaluate_lrvsf", "evaluation", ("EvaluateArguments", "PictureArguments", "ClusterArguments")),
    ):
        found[script][""] = flags_of(*((f"lrvsf.{room}.arguments", name) for name in classes))
    return found


def unknown(text, taken):
    """The steps and options of a text's commands that the scripts do not have, each after its script and step."""
    text = re.sub(r"\\\n *", "", text)
    for script, rest in re.findall(rf"\b({'|'.join(taken)})\.py (?! )(?=([^\n]*))", text):
        rest = re.sub(r"\"[^\"]*\"|'[^']*'", "TEXT", rest)  # what a value quotes is no option
        words = re.split(r" #|[|;&\"]", rest)[0].split()
        step = re.match(r"[a-z_]*", rest)[0] if script != "train_hf" else ""  # a recipe follows that
        if step not in taken[script] | {"": set()}:
            yield f"{script} {step}"
            continue
        known = {"--help", "--debug", *taken[script].get(step, ())}
        options = (word.partition("=")[0] for word in words if word.startswith("--"))
        yield from (f"{script} {step} {option}" for option in options if option not in known)


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_steps_and_flags_are_there(page, taken):
    assert [word for text in code(page) for word in unknown(text, taken)] == []


def test_other_steps_and_flags_are_noticed(taken):
    text = """
    accelerate launch --num_processes 2 train_hf.py recipes/mini.yaml --seeed 3 [--flag value ...]   # --remark
    python search_catalog.py query catalog --image a.jpg --where "a --b" \\
        --alll && python prepare_lrvsf.py minni data
    python evaluate_lrvsf.py compare --pairs A=a B=b; python evaluate_lrvsf.py --model M --protocoll paper
    ssh head "cd /shared && python prepare_lrvsf.py mini_clip --width 3 --hight 4"
    """
    assert [*unknown(text, taken)] == [
        *("train_hf  --seeed", "search_catalog query --alll", "prepare_lrvsf minni", "evaluate_lrvsf compare --pairs"),
        *("evaluate_lrvsf  --protocoll", "prepare_lrvsf mini_clip --hight"),
    ]
