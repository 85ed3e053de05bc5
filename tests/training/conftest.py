"""Small runs of train_hf.py in this process: damaged shards, a tiny CLIP, six steps."""

import json

import pytest
from made import as_flags, edit_rows, tiny_clip

import train_hf
from lrvsf.mini.build import MiniSize, build_mini


@pytest.fixture(scope="session")
def mini(tmp_path_factory):
    """24 products, one with corrupt scene images, one without a scene; a test query is corrupt too."""
    folder = tmp_path_factory.mktemp("mini")
    build_mini(folder, MiniSize(products=24, test_products=10, distractors=20, image_size=48), processes=1)

    def spoil(rows):
        for image in rows[3]["images"][1:]:
            image["image"]["bytes"] = image["image"]["bytes"][:200]
        del rows[5]["images"][1:]

    edit_rows(folder / "train/00000.parquet", spoil)
    edit_rows(folder / "test/products.parquet", lambda rows: rows[2].update(COMPLEX_IMG=b"<html>404</html>"))
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def train(mini, clip):
    """train(folder, **flags) runs train_hf.py in this process and gives the logged losses."""

    def run(folder, without=(), **flags):
        flags = {
            "model": clip, "data": mini, "output_dir": folder, "max_steps": 6, "phase1_steps": 2, "use_cpu": True,
            "per_device_train_batch_size": 7, "learning_rate": 1e-3, "logging_steps": 1, "bf16": False,
            "dataloader_num_workers": 0, "disable_tqdm": True, "report_to": "none", **flags,
        }  # fmt: skip
        train_hf.main(as_flags(**{name: value for name, value in flags.items() if name not in without}))
        checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        log = json.loads((checkpoints[-1] / "trainer_state.json").read_text())["log_history"] if checkpoints else []
        return [entry["loss"] for entry in log if "loss" in entry]

    return run


@pytest.fixture(scope="session")
def trained(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    flags = {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 3, "load_best_model_at_end": True}
    return folder, train(folder, **flags)


@pytest.fixture
def scripted(monkeypatch):
    """scripted(R@1, ...): what the next evaluations find, 0 when there are no more; an exception is raised. Of a pair
    the second is the loss."""

    def script(*values):
        values = list(values)

        def found(*_):
            value = values.pop(0) if values else 0.0
            if isinstance(value, BaseException):
                raise value
            value, loss = value if isinstance(value, tuple) else (value, 1 - value)
            return {"R@1": value, "R@5": value, "R@10": value, "loss": loss}

        monkeypatch.setattr("lrvsf.training.trainer.validate", found)

    return script
