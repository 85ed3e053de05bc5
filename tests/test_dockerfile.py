"""The Dockerfile, as far as it can be tried without a build: it copies what is there, and says what `serve` takes."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

import search_catalog

ROOT = Path(__file__).parent.parent
LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()


def of(instruction):
    return [line.partition(" ")[2] for line in LINES if line.startswith(f"{instruction} ")]


def test_what_is_copied_is_there_and_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in of("COPY"):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name
            assert ignored[0] == "*" and any(fnmatch(name, one[1:]) for one in ignored if one[0] == "!"), name


def test_the_library_imports_nothing_that_is_not_copied():
    copied = {Path(name).stem for line in of("COPY") for name in line.split()[:-1]}
    others = {path.stem for path in ROOT.glob("*.py")} - copied
    for path in ROOT.glob("lrvsf/search/**/*.py"):
        assert not others & set(re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE)), path


def test_it_runs_as_nobody_in_particular_and_is_asked_how_it_is():
    assert of("USER") == ["10001"] and LINES.index("USER 10001") < LINES.index(f"ENTRYPOINT {of('ENTRYPOINT')[0]}")
    (check,) = of("HEALTHCHECK")
    port = json.loads(of("CMD")[0])[-1]
    assert f"http://127.0.0.1:{port}/ready" in check and of("EXPOSE") == [port]


def test_its_command_is_taken(monkeypatch):
    words = json.loads(of("CMD")[0])
    assert json.loads(of("ENTRYPOINT")[0]) == ["python", "search_catalog.py"]
    with pytest.raises(FileNotFoundError, match="/catalog is no catalog"):  # flags are read before that is found
        search_catalog.main(words)
