"""A finished model folder -> its repository on the Hub.

Not by Trainer.push_to_hub, which would write a pickle of the arguments and a card of its own over ours first.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

LEFT_HERE = ["checkpoint-*", "validation/*", "*.bin"]  # of no use to who loads the model


def push_model(folder: Path, repo: str, private: bool | None = None, token: str | None = None) -> str:
    """Uploads the folder and gives its address; makes the repository if it is not there."""
    api = HfApi(token=token)
    repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
    api.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=LEFT_HERE, commit_message="Add the model")
    return f"https://huggingface.co/{repo}"
