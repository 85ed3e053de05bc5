"""`search_catalog.py space`: what the folder holds, what it must not hold, and what is refused."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made import squares, write_file
from packaging.requirements import Requirement
from PIL import Image

from lrvsf.search.catalog import Catalog
from lrvsf.search.space import write_space

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "spaces/demo"
# A package's name where it is not that of its module.
PACKAGES = {"PIL": "pillow", "faiss": "faiss-cpu"}
WITH_OTHERS = {"fsspec"}  # comes with huggingface_hub


def found(catalog, number=3, k=8):
    return [(hit.id, hit.score, hit.metadata, hit.thumbnail) for hit in catalog.search(squares(number), k=k)]


def opened(space):
    """The catalog as app.py opens it."""
    return Catalog.open(space / "catalog", str(space / "model"))


def holders(space, data):
    """The files that hold some bytes."""
    return [path.name for path in space.rglob("*") if path.is_file() and data in path.read_bytes()]


def test_the_folder_answers_as_the_catalog_does_wherever_it_is(shop, step, tmp_path):
    step("space", shop / "catalog", tmp_path / "space")
    moved = (tmp_path / "space").rename(tmp_path / "elsewhere")
    assert found(opened(moved)) == found(Catalog.open(shop / "catalog"))
    top = sorted(path.name for path in moved.iterdir())
    hub = [f"{part}_condvit.py" for part in ("configuration", "modeling", "processing", "text")]
    assert top == sorted(
        [".gitattributes", "README.md", "app.py", "requirements.txt", "catalog", "lrvsf", "model", *hub]
    )
    assert [path.name for path in (moved / "catalog").iterdir() if path.name.isupper()] == ["CURRENT"]


def test_nothing_in_it_tells_of_the_machine_that_made_it(shop, model, step, tmp_path):
    own = shutil.copytree(model, tmp_path / "home/models/tiny")
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"_name_or_path": str(own)}))
    write_file(own / "results.json", json.dumps({"data": str(shop)}).encode())
    write_file(own / "README.md", f"---\nlicense: cc-by-nc-4.0\n---\nTrained in {own}".encode())
    photos = tmp_path / "photos"
    photos.mkdir()
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "taken at home", 6  # a description, and a turn to the right
    Image.new("RGB", (2000, 1000), "red").save(photos / "a.jpg", exif=exif)
    step("index", own, shop / "shop.csv", tmp_path / "home/catalog")
    step("space", tmp_path / "home/catalog", tmp_path / "space", "--examples", photos)
    for secret in (str(tmp_path), str(shop), str(ROOT), "taken at home"):
        assert not holders(tmp_path / "space", secret.encode()), secret
    assert not list((tmp_path / "space").rglob("results.json"))
    assert Image.open(tmp_path / "space/examples/01.jpg").size == (512, 1024)  # turned, and smaller
    card = (tmp_path / "space/README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and "8 items, indexed by `tiny`" in card


def test_what_was_removed_does_not_travel(shop, step, tmp_path):
    step("remove", shop / "catalog", "x3")
    write_file(shop / "more/new.jpg", squares(20))
    step("add", shop / "more", shop / "catalog")
    step("space", shop / "catalog", tmp_path / "space")
    kept, copy = Catalog.open(shop / "catalog"), opened(tmp_path / "space")
    assert found(copy) == found(kept) and len(copy) == copy.generation.total == 8
    assert len(copy.generation.segments) == 1 and "x3" not in copy.metadata["id"].to_pylist()
    assert holders(shop / "catalog", kept.thumbnail(3)) and not holders(tmp_path / "space", kept.thumbnail(3))


def test_examples_are_a_few_of_the_photos(shop, step, tmp_path, capsys):
    photos = tmp_path / "photos"
    for number in range(14):
        write_file(photos / f"{number:02d}.jpg", squares(number))
    write_file(photos / "notes.txt", b"")
    step("space", shop / "catalog", tmp_path / "space", "--examples", photos)
    assert len(list((tmp_path / "space/examples").iterdir())) == 12 and "12 of 14" in capsys.readouterr().out
    write_file(photos / "00.jpg", b"no picture")
    with pytest.raises(ValueError, match=r"00.jpg cannot be an example \(not an image.*take it out"):
        step("space", shop / "catalog", tmp_path / "other", "--examples", photos)
    assert not (tmp_path / "other").exists() and not (tmp_path / "other.writing").exists()  # whole or absent


def test_what_cannot_be_is_refused_and_nothing_is_written(shop, model, step, tmp_path):
    write_file(tmp_path / "full/mine.txt", b"mine")
    (tmp_path / "none").mkdir()
    other = shutil.copytree(ROOT / "assets/mini-condvit", tmp_path / "other")
    pickled = shutil.copytree(model, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "model.bin")
    for words, message in (
        ([tmp_path / "full"], "full is not empty; name a new folder"),
        ([shop / "catalog/page"], "is inside .*catalog's alone"),
        ([tmp_path / "s", "--examples", tmp_path / "gone"], "there is no folder .*gone"),
        ([tmp_path / "s", "--examples", tmp_path / "none"], "none has no picture"),
        ([tmp_path / "s", "--model", other], "is another model"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            step("space", shop / "catalog", *words)
    with pytest.raises(FileNotFoundError, match="is no catalog"):
        step("space", tmp_path / "none", tmp_path / "s")
    with pytest.raises(ValueError, match=r"has no \.safetensors; save the model anew"):
        write_space._model_folder(str(pickled))
    assert not (tmp_path / "s").exists() and (tmp_path / "full/mine.txt").read_bytes() == b"mine"


def test_a_model_of_the_hub_is_named_and_copied(shop, model, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(write_space, "snapshot_download", lambda name, **kwargs: asked.append(name) or str(model))
    assert write_space._model_folder("me/tiny") == model and asked == ["me/tiny"]
    generation = Catalog.open(shop / "catalog").generation
    generation.manifest["model"]["name"] = "me/tiny"
    assert "models:\n- me/tiny\n" in write_space._card(generation, model)


def modules_of(path, seen):
    """What app.py imports at the top of a file, and at the tops of this project's files from there on."""
    seen.add(path)
    for node in ast.parse(path.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            place = ROOT.joinpath(*name.split("."))
            inner = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            if not inner.is_file():
                yield name.partition(".")[0]
            elif inner not in seen:
                yield from modules_of(inner, seen)


def test_it_asks_for_just_what_the_page_imports():
    asked = {Requirement(line).name: line for line in (DEMO / "requirements.txt").read_text().splitlines()}
    files = set()
    own = {"lrvsf", *(path.stem for path in ROOT.glob("*_condvit.py"))}
    modules = set(modules_of(DEMO / "app.py", files)) - own - set(sys.stdlib_module_names) - WITH_OTHERS
    assert {PACKAGES.get(name, name) for name in modules} | {"huggingface_hub"} == set(asked)
    rooms = {path.relative_to(ROOT).parts[1] for path in files if path.parts[len(ROOT.parts)] == "lrvsf"}
    assert {room for room in rooms if not room.endswith(".py")} == set(write_space.ROOMS)
    files = [ROOT / f"requirements{part}.txt" for part in ("", "-search", "-app")]
    bounded = [line for path in files for line in path.read_text().splitlines()]
    assert set(asked.values()) - set(bounded) == {"pillow>=12.1.1,<13"}  # as gradio holds it


def test_an_installed_library_has_the_page_too(tmp_path):
    source = tmp_path / "source"  # a build writes beside what it builds
    for folder in ("lrvsf", "spaces"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    build = "import setuptools.build_meta as b; b.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--prefix", tmp_path / "here"]
    subprocess.run([*pip, wheel], check=True)
    (installed,) = (tmp_path / "here").glob("lib*/python*/site-packages")
    look = "import sys; sys.path.insert(0, sys.argv[1])\nfrom lrvsf.search.space.write_space import shipped\n"
    look += "print(shipped('spaces/demo/app.py').read_text(), shipped('LICENSE').read_text(), sep='', end='')"
    told = subprocess.run([sys.executable, "-I", "-c", look, installed], capture_output=True, text=True, cwd=tmp_path)
    assert told.stdout == (DEMO / "app.py").read_text() + (ROOT / "LICENSE").read_text(), told.stderr


def test_the_version_of_gradio_is_the_tested_one():
    pin = re.search(r"^gradio==(\S+)$", (ROOT / "constraints-app.txt").read_text(), re.MULTILINE)[1]
    for demo in (DEMO, ROOT / "spaces/leaderboard", ROOT / "metrics/lrvsf_recall"):
        assert f"sdk_version: {pin}\n" in (demo / "README.md").read_text(), f"{demo}: `make lock` took gradio {pin}"
