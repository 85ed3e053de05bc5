"""The house of docs/architecture.md stands: imports run one way, sizes are kept, one place renames."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path for path in ROOT.glob("*.py") if not path.name.endswith("_condvit.py"))
FILES = sorted(ROOT.glob("lrvsf/**/*.py"))
TREES = {path: ast.parse(path.read_text()) for path in [*SCRIPTS, *FILES]}
# A room -> the rooms that it knows nothing of.
UNKNOWN = {
    "data": {"prepare", "mini", "embedding", "training", "evaluation", "search", "hub", "scale"},
    "embedding": {"prepare", "mini", "training", "evaluation", "search", "hub", "scale"},
    "evaluation": {"prepare", "mini", "training", "search", "hub", "scale"},
    "training": {"prepare", "mini", "search", "hub", "scale"},
    "search": {"prepare", "mini", "training", "evaluation", "hub", "scale"},
    "prepare": {"mini", "embedding", "training", "evaluation", "hub", "scale"},
}
# What holds flags knows where their work may be done.
FLAGGED = ("search/commands.py", "evaluation/arguments.py", "prepare/laion/write_products.py")
FLAGS = {f"lrvsf/{file}": {"scale"} for file in FLAGGED}
# What opens a catalog opens a Lance table, too.
FLAGS |= dict.fromkeys(["lrvsf/search/generations.py", "lrvsf/search/opening/opened.py"], {"scale"})


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imported(path):
    """The modules that a file imports, at its top or within a function."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("room", UNKNOWN)
def test_imports_run_one_way(room):
    for path in ROOT.glob(f"lrvsf/{room}/**/*.py"):
        known = {module.split(".")[1] for module in imported(path) if module.startswith("lrvsf.")}
        assert not known & UNKNOWN[room] - FLAGS.get(name_of(path), set()), name_of(path)


def test_the_library_knows_nothing_of_the_scripts():
    scripts = {path.stem for path in SCRIPTS}
    for path in FILES:
        assert not scripts & set(imported(path)), name_of(path)


def test_files_functions_and_folders_stay_small():
    for path, tree in TREES.items():
        lines = len(path.read_text().splitlines())
        assert lines < (120 if path in SCRIPTS else 400), name_of(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{name_of(path)}: {node.name}"
    folders = Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert max(folders.values()) <= 13, folders.most_common(1)


def test_no_two_files_of_one_name():
    names = Counter(path.name for path in FILES if path.name not in ("__init__.py", "arguments.py"))
    assert [name for name, count in names.items() if count > 1] == []
    assert not {"utils.py", "common.py"} & set(names)


@pytest.mark.parametrize(
    "home, names",
    [("lrvsf/durable.py", {"replace", "rename", "renames", "move"}), ("lrvsf/processes.py", {"get_world_size"})],
)
def test_one_place_does_it(home, names):
    """Renaming, by os and shutil; asking for the world size, by torch.distributed."""
    libraries = ("os", "shutil", "dist", "distributed")
    for path, tree in TREES.items():
        found = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in names)
        for node in found:
            assert ast.unparse(node.value) not in libraries or name_of(path) == home, f"{name_of(path)}:{node.lineno}"
