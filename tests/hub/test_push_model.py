"""The push against a Hub on loopback: what arrives, and what is said when it does not.

Weights take the LFS path here (HF_HUB_DISABLE_XET): hf_xet's protocol is not one to imitate in a test, so that of it
only the failures are tried.
"""

import os
import shlex
import subprocess
import sys
import time

import pytest
from fake_hub import SILENCE, TOKEN, FakeHub
from huggingface_hub import constants

from lrvsf.command import fold
from lrvsf.hub import push_model as push

SCORES = ".eval_results/lrvsf.yaml"
MODEL = [SCORES, "README.md", "config.json", "model.safetensors", "modeling_condvit.py"]
MODEL += ["onnx/condvit_onnx.py", "onnx/query.onnx", "onnx/query.onnx.data", "preprocessor_config.json"]
LEFT = [
    "training_args.bin", "model.safetensors.tmp", "optimizer.pt", "checkpoint-3/model.safetensors",
    "checkpoint-3/trainer_state.json", "checkpoint-3/optimizer.pt", "validation/products.parquet",
    "validation/model.json", "runs/a/notes.pkl", "onnx/__pycache__/a.pyc",
    "__pycache__/modeling_condvit.cpython-311.pyc",
]  # fmt: skip
CONFIG = b'{"model_type": "condvit"}'
EVENTS = "runs/Nov25_host/events.out.tfevents.1.host.1.0"


@pytest.fixture
def hub(monkeypatch):
    hub = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_XET_CLIENT_READ_TIMEOUT", "")  # so that what the push sets is taken back
    monkeypatch.delenv("HF_XET_CLIENT_READ_TIMEOUT")
    yield hub
    hub.close()


def bytes_of(name):
    return CONFIG if name == "config.json" else f"the bytes of {name}".encode()


@pytest.fixture
def folder(tmp_path):
    for name in [*MODEL, *LEFT, EVENTS]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes_of(name))
    return tmp_path


@pytest.fixture
def waits(monkeypatch):
    """The sleeps asked for, in seconds, which are not slept."""
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def test_one_commit_has_the_model_whole_and_nothing_else(hub, folder):
    url = push.push_model(folder, "bags", private=True, token=TOKEN)
    assert hub.repositories == {"me/bags": True}
    assert hub.commits == [{name: bytes_of(name) for name in [*MODEL, EVENTS]}]
    assert url.startswith(f"{hub.url}/me/bags/commit/") and hub.asked["upload"] == 2


def test_a_folder_that_holds_no_model_is_refused_unasked(hub, folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        push.PushError, match="is no finished model: it has no \\*.safetensors. Name what [a-z_.]+ left.$"
    ):
        push.push_model(folder, "bags", token=TOKEN)
    assert not hub.asked


@pytest.mark.survives(
    "the Hub answers 401, 403, 429, 500 or nothing", "exit status 2, the reason and the command that repeats the push"
)
@pytest.mark.parametrize("endpoint", ["create", "validate", "preupload", "batch", "upload", "commit"])
@pytest.mark.parametrize(
    "status, headers, remedy",
    [
        (401, {}, "hf auth login"),
        (403, {}, "take a token that may write to"),
        (429, {"Retry-After": "2"}, "wait 2 seconds"),
        (429, {"Retry-After": "600"}, "wait 600 seconds"),
        (429, {"RateLimit": '"api";r=0;t=240'}, "wait 240 seconds"),
        (500, {}, "wait some minutes"),
        (SILENCE, {}, "see whether this machine reaches"),
    ],
)
def test_what_the_hub_will_not_take_ends_with_reason_remedy_and_command(
    hub, folder, waits, monkeypatch, endpoint, status, headers, remedy
):
    hub.faults[endpoint] = (status, headers)
    monkeypatch.setattr(push, "ANSWER_WITHIN", 0.1)
    with pytest.raises(push.PushError) as raised:
        push.push_model(folder, "me/bags", private=False, token=TOKEN)
    said = str(raised.value)
    assert hub.commits == [] and remedy in said and f"The model is safe in {folder}." in said
    again = ["python", "publish_lrvsf.py", "push", folder, "me/bags", "--no_private"]
    assert said.endswith("\n" + fold(again, "    ")) and TOKEN not in said
    if status == SILENCE:
        assert "timed out" in said
    elif not (endpoint == "validate" and status == 500):  # there huggingface_hub reads the page before the status
        assert str(status) in said
    files = 2 if endpoint == "upload" else 1  # uploaded beside each other
    assert hub.asked[endpoint] <= 6 * files and sum(waits) <= 30 * files


def test_a_trouble_that_passes_is_waited_for(hub, folder, waits):
    hub.faults["preupload"] = (503, {"Retry-After": "7"})
    passing = waits.append

    def pass_on(seconds):
        passing(seconds)
        hub.faults.clear()

    time.sleep = pass_on  # put back by `waits`
    push.push_model(folder, "me/bags", token=TOKEN)
    assert waits == [8] and len(hub.commits) == 1


def test_a_repeated_push_sends_the_weights_no_second_time(hub, folder):
    hub.faults["commit"] = (500, {})
    with pytest.raises(push.PushError):
        push.push_model(folder, "me/bags", token=TOKEN)
    hub.faults.clear()
    push.push_model(folder, "me/bags", token=TOKEN)
    assert hub.asked["upload"] == 2 and len(hub.commits) == 1


def test_wrong_names_tokens_and_settings_get_their_own_remedy(hub, folder, monkeypatch, tmp_path):
    for repo, token, message in [
        ("a/b/c", TOKEN, "Remedy: correct what it names"),
        ("they/bags", TOKEN, "rights to create .* namespace they\nRemedy: take a token that may write to they/bags"),
        ("bags", "hf_wrong", "Invalid username or password.\nRemedy: log in"),
        ("bags", None, "no token found.*\nRemedy: log in"),
    ]:
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        with pytest.raises(push.PushError, match=message):
            push.push_model(folder, repo, token=token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(push.PushError, match="Remedy: unset HF_HUB_OFFLINE"):
        push.push_model(folder, "bags", token=TOKEN)
    assert not hub.commits


def test_no_network_is_said_before_the_training(hub, waits):
    hub.close()
    with pytest.raises(push.PushError, match=f"see whether this machine reaches {hub.url}.*\nNothing was trained yet"):
        push.open_repository("me/bags", token=TOKEN)


def test_the_repository_is_opened_before_the_training_by_its_full_name(hub):
    assert push.open_repository("bags", private=True, token=TOKEN) == "me/bags"
    assert push.open_repository("me/bags", token=TOKEN) == "me/bags" and hub.repositories == {"me/bags": True}


@pytest.fixture
def run(hub, tmp_path):
    """run(command, **environment) runs `python ...` with the Hub on loopback, and hf_xet in a hurry."""

    def run(command, **environment):
        names = {
            "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "home"), "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
        }  # fmt: skip
        words = [sys.executable, *map(str, command)]
        environment = {**os.environ, **names, **environment}
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)

    return run


def test_the_command_that_the_message_gives_repeats_the_push(hub, folder, run):
    hub.faults["commit"] = (500, {})
    with pytest.raises(push.PushError) as raised:
        push.push_model(folder, "me/bags", token=TOKEN)
    command = shlex.split(str(raised.value).partition("    python")[2].replace("\\\n", ""))
    failed = run(command)
    assert failed.returncode == 2 and failed.stdout == "" and "Traceback" not in failed.stderr
    assert "publish_lrvsf.py push: me/bags" in failed.stderr and failed.stderr.rstrip().endswith(
        str(raised.value).replace(", with that token in HF_TOKEN", "")
    )
    hub.faults.clear()
    done = run(command)
    assert done.returncode == 0 and done.stdout.startswith(f"{hub.url}/me/bags/commit/") and len(hub.commits) == 1


def test_a_branch_is_pushed_to_and_named_in_the_command(hub, folder):
    hub.faults["commit"] = (500, {})
    with pytest.raises(push.PushError, match=r"me/bags[ \\\n]*--revision dev$"):
        push.push_model(folder, "bags", token=TOKEN, revision="dev")
    hub.faults.clear()
    push.push_model(folder, "bags", token=TOKEN, revision="dev")
    assert hub.branches == ["dev"]


@pytest.mark.parametrize("status, remedy", [(403, "take a token that may write"), (SILENCE, "see whether this")])
def test_through_hf_xet_a_push_ends_too(hub, folder, run, status, remedy):
    hub.faults["xet"] = (status, {})
    hurry = (
        "from pathlib import Path; from lrvsf.hub import push_model as push; push.ANSWER_WITHIN = 0.2; "
        f"push.push(Path('{folder}'), 'me/bags')"
    )
    failed = run(["-c", hurry], HF_HUB_DISABLE_XET="0")
    assert failed.returncode == 1 and remedy in failed.stderr and f"The model is safe in {folder}." in failed.stderr
    assert hub.asked["xet"] and not hub.asked["batch"] and not hub.commits
