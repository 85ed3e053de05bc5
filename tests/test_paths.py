"""Wrong folders and files are named before anything is loaded; a mistyped folder is never asked of the Hub."""

from argparse import Namespace

import pytest
from made import write_layout

from lrvsf import paths
from lrvsf.evaluation.arguments import check_evaluation, check_test_set


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a model, training data and a test set; the current one."""
    for name in ("runs/first/config.json", "runs/trained/checkpoint-4/config.json", "data/test/products.parquet"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    (tmp_path / "data/train").mkdir()
    (tmp_path / "note.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_folder_and_a_name_of_the_hub_are_taken(here):
    for name in ("runs/first", "./runs/first", str(here / "runs/first"), "openai/clip-vit-base-patch32"):
        paths.check_model(name)


@pytest.mark.parametrize(
    "name, says",
    [
        ("./first", "there is no folder ./first, and a name on the Hub looks like OWNER/MODEL"),
        ("../first", "there is no folder ../first, and"),
        ("/nowhere/first", "there is no folder /nowhere/first, and"),
        ("~/first", "there is no folder ~/first, and"),
        ("runs/a/first", "there is no folder runs/a/first, and"),
        ("frist", "there is no folder frist, and"),
        ("run", r"there is no folder run \(did you mean runs\?\), and"),
        ("C:\\runs\\first", "there is no folder"),
        (
            "runs/frist",
            r"read as a folder, as runs/ is one here, .* \(did you mean runs/first\?\). If you mean the Hub's",
        ),
        ("runs/first/", "nothing"),
        ("note.txt", "note.txt is a file: give the folder of a model"),
        ("runs/trained", "has no config.json: .* Did you mean runs/trained/checkpoint-4?"),
        ("data", "data has no config.json"),
    ],
)
def test_a_mistyped_folder_is_not_asked_of_the_hub(here, name, says):
    if says == "nothing":
        return paths.check_model(name)
    with pytest.raises(OSError, match=says):
        paths.check_model(name)


def test_a_home_that_the_shell_has_not_written_out_is_named(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    with pytest.raises(FileNotFoundError, match=f"the shell has left the ~ as it is. Write {here}/runs/first"):
        paths.check_model("~/runs/first")


NO_FOLDS = {"product_folds": None, "stored_folds": None}
NO_CLUSTER = dict.fromkeys(("engine", "address", "actors", "cpus_per_actor"))
NO_VIEWS = {"query_views": None, "conditioning_page": False}


def asked(**given):
    return Namespace(
        **{
            "model": "runs/first", "data": "data", "eval_strategy": "no", "output_dir": "out", "categories": None,
            "text_from": None, "resume_from_checkpoint": None, **given,
        }
    )  # fmt: skip


def test_what_train_hf_can_read_is_taken(here):
    paths.check_training(asked())
    paths.check_training(asked(data="hf://datasets/owner/name", eval_strategy="epoch"))
    paths.check_training(asked(categories=["Shirts, long", "Bags"]))
    paths.check_training(asked(resume_from_checkpoint="auto"))


@pytest.mark.parametrize(
    "given, says",
    [
        ({"data": "dat"}, r"dat has no train/ folder \(did you mean data\?\); write one with prepare_lrvsf.py"),
        ({"data": "data/train"}, "it is one: you mean --data data"),
        ({"eval_strategy": "epoch"}, "there is no data/validation/products.parquet; .* or add --eval_strategy no"),
        ({"output_dir": "note.txt"}, "output_dir=note.txt: note.txt is a file"),
        ({"output_dir": "note.txt/run"}, "output_dir=note.txt/run: .*note.txt is a file"),
        ({"resume_from_checkpoint": "out/checkpoint-9"}, "is no folder; give a checkpoint's, or True for the newest"),
        ({"categories": ["Bags,", "Lower Body"]}, "blanks, not by commas. Write --categories Bags 'Lower Body', or in"),
        ({"categories": ["Bags, Lower Body"]}, r"or in a recipe categories: \[Bags, Lower Body\]"),
    ],
)
def test_what_train_hf_cannot_is_refused(here, given, says):
    with pytest.raises((OSError, ValueError), match=says):
        paths.check_training(asked(**given))


@pytest.mark.survives("a second training into the folder of a finished model", "refused before anything is loaded")
def test_a_finished_model_is_not_replaced_unasked(here):
    (here / "out").mkdir()
    (here / "out/model.safetensors").write_bytes(b"")
    with pytest.raises(FileExistsError, match="out holds a finished model, which this run would replace"):
        paths.check_training(asked())
    paths.check_training(asked(resume_from_checkpoint="auto"))
    (here / "out/checkpoint-2").mkdir()
    paths.check_training(asked())  # which the trainer refuses, and tells how to go on


def test_what_is_there_already_is_not_called_meant(here):
    with pytest.raises(FileNotFoundError, match="give the folder of a test set$"):
        check_test_set("runs")


@pytest.mark.parametrize("sizes, larger", [(None, "500, 2000, 5000"), ([3, 4], "4")])
def test_a_gallery_that_the_test_set_cannot_fill_is_refused(here, sizes, larger):
    write_layout(here / "data/test", {}, {"jpg": [b""]}, {"jpg": [b""] * 2})
    given = {"model": "runs/first", "data_root": "data/test", "embeds": None} | NO_FOLDS
    given |= NO_CLUSTER | NO_VIEWS
    asked = Namespace(**given, output_dir="out", protocol="bootstrap", gallery_sizes=sizes)
    with pytest.raises(ValueError, match=f"gallery_sizes has {larger}, but only 3 distractors are available"):
        check_evaluation(asked)
    asked.gallery_sizes = [3]
    check_evaluation(asked)


def test_what_evaluate_lrvsf_cannot_read_is_refused(here):
    given = {"model": "runs/first", "data_root": "data/test", "embeds": None} | NO_FOLDS
    given |= NO_CLUSTER | NO_VIEWS
    given |= {"output_dir": "out", "protocol": "paper"}
    check_evaluation(Namespace(**given))
    with pytest.raises(FileNotFoundError, match="data has no products.parquet: .* Did you mean data/test?"):
        check_evaluation(Namespace(**{**given, "data_root": "data"}))
    with pytest.raises(FileNotFoundError, match="data/train has no products.parquet: .* Did you mean data/test?"):
        check_evaluation(Namespace(**{**given, "data_root": "data/train"}))
    with pytest.raises(FileNotFoundError, match=r"--stored_folds: there is no file note \(did you mean note.txt\?\)"):
        check_evaluation(Namespace(**{**given, "stored_folds": "note"}))
