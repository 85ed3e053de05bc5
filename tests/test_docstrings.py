"""Every example in a docstring runs, and gives what it says."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [*ROOT.glob("*.py"), *ROOT.glob("lrvsf/**/*.py")]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(FILES) if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted and not results.failed
