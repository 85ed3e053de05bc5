"""train_hf.py --push_to_hub as it is run: training, a push that fails, the command that repeats it, the repository."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub
from huggingface_hub import ModelCard, constants
from made import as_flags, tiny_clip
from transformers import AutoModel

import train_hf
from lrvsf.data.testset import ProductTestSet
from lrvsf.hub.push_model import PushError
from lrvsf.mini.build import MiniSize, build_mini

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def hub():
    hub = FakeHub()
    yield hub
    hub.close()


@pytest.fixture
def run(hub):
    def run(*words):
        names = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        environment = {**os.environ, **names, "CUDA_VISIBLE_DEVICES": ""}
        words = [sys.executable, *map(str, words)]
        return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture
def flags(tmp_path):
    build_mini(tmp_path / "mini", MiniSize(products=8, test_products=5, distractors=6, image_size=48), processes=1)
    tiny_clip().save_pretrained(tmp_path / "clip")
    return as_flags(
        model=tmp_path / "clip", data=tmp_path / "mini", output_dir=tmp_path / "run", use_cpu=True, max_steps=4,
        phase1_steps=1, per_device_train_batch_size=4, dataloader_num_workers=0, bf16=False, disable_tqdm=True,
        eval_strategy="steps", eval_steps=2, save_steps=2, push_to_hub=True, hub_model_id="bags", hub_private_repo=True,
    )  # fmt: skip


def test_a_push_that_fails_is_an_exit_status_and_its_command_completes_it(hub, run, flags, tmp_path):
    hub.faults["commit"] = (500, {})
    trained = run("train_hf.py", *flags)
    assert trained.returncode == 2 and "trained 4 steps" in trained.stdout and "pushed" not in trained.stdout
    assert f"The model is safe in {tmp_path / 'run'}." in trained.stderr and "Traceback" not in trained.stderr
    assert not hub.commits
    hub.faults.clear()
    command = ["python", *shlex.split(trained.stderr.partition("    python")[2].replace("\\\n", ""))]
    done = run(*command[1:])
    assert done.returncode == 0 and done.stdout.startswith(f"{hub.url}/me/bags/commit/")

    (files,) = hub.commits
    events = [name for name in files if name.startswith("runs/")]
    assert sorted(set(files) - set(events)) == [
        "README.md", "config.json", "configuration_condvit.py", "model.safetensors", "modeling_condvit.py",
        "modules.json", "preprocessor_config.json", "processing_condvit.py", "sentence_bert_config.json",
        "text_condvit.py",
    ]  # fmt: skip
    assert len(events) == 1 and "events.out.tfevents" in events[0] and hub.repositories == {"me/bags": True}
    pushed = tmp_path / "pushed"
    for name, content in files.items():
        (pushed / name).parent.mkdir(parents=True, exist_ok=True)
        (pushed / name).write_bytes(content)
    AutoModel.from_pretrained(pushed, trust_remote_code=True)

    log = json.loads((tmp_path / "run/checkpoint-4/trainer_state.json").read_text())["log_history"]
    last = [entry for entry in log if "eval_R@1" in entry][-1]
    card = ModelCard.load(pushed / "README.md")
    results = {result.metric_type: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        f"recall_at_{k}": round(100 * last[f"eval_R@{k}"], 2)
        for k in (1, 5)  # 10 is more than the gallery of 6 holds
    }
    assert results["recall_at_1"].metric_args == {"step": 4} and card.data.model_name == "bags"
    validation = ProductTestSet(tmp_path / "mini/validation")
    gallery = {"products": validation.n_products, "distractors": validation.n_distractors}
    assert results["recall_at_1"].dataset_args == gallery


def test_what_the_hub_refuses_it_refuses_before_the_training(hub, flags, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(PushError, match="write to they/bags, or another repository.\nNothing was trained yet"):
        train_hf.main([*flags, "--hub_model_id", "they/bags", "--hub_token", TOKEN])
    assert not (tmp_path / "run").exists()
