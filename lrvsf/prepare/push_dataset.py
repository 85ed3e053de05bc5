"""`prepare_lrvsf.py push`: a prepared folder -> a dataset repository on the Hub, private unless asked otherwise.

Pictures of other people's products are rarely ours to publish, so a repository that is public already is refused
(ValueError), and so is a folder that `check --quick` refuses or that has no train/.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from huggingface_hub import HfApi
from typer import Argument, Option

from lrvsf.command import Command
from lrvsf.data.folders import COMPANION, files_in
from lrvsf.prepare.checked_folders import check_folders

TEST_SETS = ("validation", "test")
# Rows differ, so each kind is a configuration of its own; `load_dataset(REPO)` gives the products.
CONFIGURATIONS = {
    "products": {"train": "train/*.parquet"},
    "queries": {name: f"{name}/products.parquet" for name in TEST_SETS},
    "distractors": {name: f"{name}/distractors/*.parquet" for name in TEST_SETS},
}


def push(
    path: Annotated[Path, Argument(help="data folder with train/ and, if there are any, validation/ and test/")],
    repo: Annotated[str, Argument(help="dataset repository, NAMESPACE/NAME; made if it is not there")],
    public: Annotated[bool, Option("--public", help="let everyone read it")] = False,
) -> dict[str, Any]:
    """Put a prepared folder on the Hub as a private dataset to train from."""
    check_folders(path, quick=True)  # before a repository is made
    patterns = [pattern for config in CONFIGURATIONS.values() for pattern in config.values()]
    files = [file for pattern in patterns for file in _matching(path, pattern)]
    if not _matching(path, CONFIGURATIONS["products"]["train"]):
        raise ValueError(f"{path} has no train/*.parquet; name the folder that train/ is in")
    api = HfApi()
    api.create_repo(repo, repo_type="dataset", private=not public, exist_ok=True)
    # `exist_ok` says nothing of a repository that was there, and was public.
    if not public and not api.repo_info(repo, repo_type="dataset").private:
        raise ValueError(f"{repo} is there already and public; choose another name, or say --public")
    # What an earlier, larger push left would be read as part of this one.
    api.upload_folder(
        repo_id=repo,
        repo_type="dataset",
        folder_path=path,
        allow_patterns=[*patterns, "*/manifest.json"],
        ignore_patterns=[f"*/{COMPANION}*"],  # which macOS writes, and whose names match
        delete_patterns=patterns,
        commit_message="Add product shards and test sets",
    )
    # The card comes last: until it is there, nothing names the files as splits.
    card = card_text(path, repo)
    api.upload_file(repo_id=repo, repo_type="dataset", path_or_fileobj=card.encode(), path_in_repo="README.md")
    return {
        "repository": f"https://huggingface.co/datasets/{repo}",
        "private": "no" if public else "yes",
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "train with": Command(train_command(repo).split()),
    }


def _matching(path: Path, pattern: str) -> list[Path]:
    folder, _, name = pattern.rpartition("/")
    return files_in(path / folder, name)


def train_command(repo: str) -> str:
    return f"accelerate launch train_hf.py --data hf://datasets/{repo}"


def card_text(path: Path, repo: str) -> str:
    """The dataset card; its YAML tells `datasets` which files are which split."""
    lines = ["---", "configs:"]
    for config, splits in CONFIGURATIONS.items():
        there = {split: pattern for split, pattern in splits.items() if _matching(path, pattern)}
        if there:
            lines += [f"- config_name: {config}", *["  default: true"] * (config == "products"), "  data_files:"]
            for split, pattern in there.items():
                lines += [f"  - split: {split}", f"    path: {pattern}"]
    lines += ["tags:", "- visual-search", "- image-retrieval", "---", ""]
    return "\n".join(lines) + CARD.format(name=repo.rpartition("/")[2], command=train_command(repo))


CARD = """# {name}

Products for referred visual search: pictures of a product alone (SIMPLE) and in scenes (COMPLEX, PARTIAL_COMPLEX), with
its category and captions. Train CondViT from it without downloading it first:

```
{command}
```

`products` has one row per product (`product_id`, `images`: list of `image`, `type`, `category`, `captions`), `queries`
a scene and its target (`COMPLEX_IMG`, `SIMPLE_IMG`, `CATEGORY`), `distractors` the rest of the gallery (`jpg`).

The pictures stay under the licences of those they come from.
"""
