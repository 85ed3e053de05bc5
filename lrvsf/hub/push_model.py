"""A finished model folder -> its repository on the Hub, in one commit.

It is what `train_hf.py --push_to_hub` does last, and what repeats it when that failed. The token is that of
`hf auth login` or of HF_TOKEN. Not by Trainer.push_to_hub, which would write a pickle of the arguments and a card of
its own over ours first, and not by upload_folder, which may make several commits: a model is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_session, set_client_factory
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import hf_raise_for_status, parse_ratelimit_headers
from typer import Argument, Option

from lrvsf.command import called, fold
from lrvsf.hub.checkpoint_files import CONFIG, json_object
from lrvsf.hub.encoder_place import check_found_anywhere, put_encoder_into

# What a model repository is made of. All else stays here: checkpoints, optimizers, pickles, a copied validation set.
PUSHED = (
    *("README.md", "LICENSE", "*.json", "*.safetensors", "*.py"),
    *(".eval_results/*.yaml", "runs/**/events.out.tfevents.*"),
    *("onnx/*.onnx", "onnx/*.onnx.data", "onnx/*.npy", "onnx/*.py"),
)
NEEDED = ("README.md", "config.json", "preprocessor_config.json", "*.safetensors", "modeling_*.py")

ANSWER_WITHIN = 90.0  # seconds without a byte from the Hub; its own gateway gives up after 60 (not tuned)
LONGEST_WAIT = 60  # seconds that the Hub may ask for before a next attempt; huggingface_hub makes up to five


def push(
    folder: Annotated[Path, Argument(help="model folder that train_hf.py, or the step convert, left")],
    repo: Annotated[str, Argument(help="OWNER/NAME, or NAME in your account; made if it is not there")],
    private: Annotated[bool | None, Option(help="of a new repository; by default the account's choice")] = None,
    revision: Annotated[str | None, Option(help="a branch that exists; main by default")] = None,
    with_text_encoder: Annotated[
        bool, Option("--with_text_encoder", help="put the weights of a text model's encoder into FOLDER first")
    ] = False,
) -> str:
    """Commit a finished model folder to its repository on the Hub."""
    if with_text_encoder:
        model_files(folder)
        put_encoder_into(folder)
    return push_model(folder, repo, private, revision=revision)


class PushError(RuntimeError):
    """Nothing was pushed. The message says why, and what to do."""


def open_repository(repo: str, private: bool | None = None, token: str | None = None) -> str:
    """Makes the repository if it is not there, to learn before a training whether the Hub will take it.

    Returns:
        The repository's full name, OWNER/NAME.
    """
    try:
        return _api(token).create_repo(repo, private=private, exist_ok=True).repo_id
    except Exception as error:
        raise PushError(
            f"{_explain(error, repo)}\nNothing was trained yet; without --push_to_hub it will be."
        ) from error


def push_model(
    folder: Path, repo: str, private: bool | None = None, token: str | None = None, revision: str | None = None
) -> str:
    """The step `push`, with a token that may write; None for that of `hf auth login` or HF_TOKEN.

    Returns:
        The commit's address.

    Raises:
        PushError: for whatever reason, and with the command that repeats the push.
        ValueError: the text encoder of the model would be fetched from a folder of this machine.
    """
    paths = model_files(folder)  # before anything is asked of the Hub
    check_found_anywhere(json_object(folder / CONFIG), "put it into the model's own by --with_text_encoder")
    try:
        api = _api(token)
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        files = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in paths]
        return api.create_commit(repo, files, commit_message="Add the model", revision=revision).commit_url
    except Exception as error:
        raise PushError(
            f"{_explain(error, repo)}\nThe model is safe in {folder}. This repeats the push alone"
            f"{', with that token in HF_TOKEN' if token else ''}:\n{_command(folder, repo, private, revision)}"
        ) from error


def model_files(folder: Path) -> list[Path]:
    """The files of `folder` that make a model repository, refused if a model could not be loaded from them."""
    missing = [pattern for pattern in NEEDED if not any(folder.glob(pattern))]
    if missing:
        raise PushError(f"{folder} is no finished model: it has no {', '.join(missing)}. Name what train_hf.py left.")
    return sorted({path for pattern in PUSHED for path in folder.glob(pattern) if path.is_file()})


def _api(token: str | None) -> HfApi:
    """Every attempt gets an answer or ends within ANSWER_WITHIN: by huggingface_hub's own default it may never.

    It makes up to six attempts at a request, and so does hf_xet.
    """
    os.environ.setdefault("HF_XET_CLIENT_READ_TIMEOUT", f"{int(1000 * ANSWER_WITHIN)}ms")  # read at its first upload
    session = get_session()
    kind, hooks = type(session), {**session.event_hooks, "response": [_refuse_a_long_wait]}  # httpx, or httpx2
    set_client_factory(lambda: kind(event_hooks=hooks, follow_redirects=True, timeout=ANSWER_WITHIN))
    return HfApi(token=token or True)  # True: one must be there


def _refuse_a_long_wait(response) -> None:
    """huggingface_hub would sleep for as long as it is asked to; minutes are a person's to decide on."""
    if response.status_code >= 400 and _wait(response.headers) > LONGEST_WAIT:
        response.read()  # its body is in the error's message
        hf_raise_for_status(response)


def _wait(headers) -> int:
    """Seconds that the Hub asks to wait, 0 if it does not say."""
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    asked = headers.get("retry-after", "")
    return int(asked) if asked.isdigit() else 0


def _explain(error: Exception, repo: str) -> str:
    """What happened to the push and what helps."""
    # An upload's failure arrives as a RuntimeError with the file's name; its cause has the status.
    told = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
    reason = " ".join((f"{error} {told}" if told is not error else str(error)).split()) or type(error).__name__
    return f"{repo} was not pushed: {reason}\nRemedy: {_remedy(told, repo)}."


def _remedy(error: BaseException, repo: str) -> str:
    response = getattr(error, "response", None)
    in_words = re.search(r"HTTP status \w+ error \((\d{3})", str(error))  # hf_xet's errors have no response
    status = response.status_code if response is not None else int(in_words[1]) if in_words else 0
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return "log in with `hf auth login`, or put a token that may write into HF_TOKEN"
    if isinstance(error, OfflineModeIsEnabled):
        return "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE"
    if status == 403:
        return f"take a token that may write to {repo}, or another repository"
    if status == 429:
        return f"wait {(_wait(response.headers) if response is not None else 0) or 300} seconds"
    if status >= 500 or isinstance(error, json.JSONDecodeError):  # a gateway's page instead of an answer
        return "the Hub is in trouble (https://status.huggingface.co): wait some minutes"
    if status or isinstance(error, ValueError):
        return "correct what it names"
    return f"see whether this machine reaches {constants.ENDPOINT}, and with which proxy"


def _command(folder: Path, repo: str, private: bool | None, revision: str | None) -> str:
    words = [*called("publish"), "push", str(folder.resolve()), repo]  # absolute: it is pasted from anywhere
    words += [] if private is None else ["--private" if private else "--no_private"]
    words += [] if revision is None else ["--revision", revision]
    return fold(words, indent="    ")
