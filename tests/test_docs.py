"""Whatever README and docs name is there: files, tests, modules, steps, links."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import prepare_lrvsf
import publish_lrvsf
from lrvsf.evaluation.arguments import STEPS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "lrvsf|tests|docs|recipes|tools|benchmarks|metrics|assets|spaces|contrib|deploy"
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_steps_are_there(page):
    steps = {"prepare": {step.__name__ for step in prepare_lrvsf.STEPS}, "evaluate": set(STEPS)}
    steps["publish"] = {step.__name__ for step in publish_lrvsf.STEPS}
    for text in code(page):
        for script, step in re.findall(r"(prepare|evaluate|publish)_lrvsf\.py ([a-z]+)\b", text):
            assert step in steps[script], f"{script}_lrvsf.py {step}"
