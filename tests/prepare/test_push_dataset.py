"""What would go to the Hub, from a Hub that is a folder."""

import fnmatch
import shutil

import datasets
import pytest
from made import jpeg, product

from lrvsf.prepare import push_dataset as module
from lrvsf.prepare.push_dataset import push
from lrvsf.prepare.writers import ProductShardWriter, TestSetWriter


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Stands in for HfApi: repositories are folders of tmp_path/hub. `hub.private`: repository -> bool."""

    class FolderHub:
        root = tmp_path / "hub"
        private = {}

        def create_repo(self, repo, *, repo_type, private, exist_ok):
            assert (repo_type, exist_ok) == ("dataset", True)
            self.private.setdefault(repo, private)  # as the Hub: what is there stays as it is

        def repo_info(self, repo, *, repo_type):
            return type("Info", (), {"private": self.private[repo]})

        def upload_folder(
            self, *, repo_id, repo_type, folder_path, allow_patterns, ignore_patterns, delete_patterns, commit_message
        ):
            def chosen(folder, patterns):
                files = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
                return [p for p in files if any(fnmatch.fnmatch(str(p), pattern) for pattern in patterns)]

            there = self.root / repo_id
            for old in chosen(there, delete_patterns):
                (there / old).unlink()
            for new in set(chosen(folder_path, allow_patterns)) - set(chosen(folder_path, ignore_patterns)):
                (there / new).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder_path / new, there / new)

        def upload_file(self, *, repo_id, repo_type, path_or_fileobj, path_in_repo):
            (self.root / repo_id / path_in_repo).write_bytes(path_or_fileobj)

    monkeypatch.setattr(module, "HfApi", FolderHub)
    return FolderHub


@pytest.fixture
def root(tmp_path):
    """train/ of 3 products, test/ of a query and 2 distractors, and things that are not data."""
    with ProductShardWriter(tmp_path / "data/train", shard_bytes=1000) as shards:
        for i in range(3):
            shards.add(product(f"p{i}", jpeg(2 * i), jpeg(2 * i + 1), captions=["a"]))
    with TestSetWriter(tmp_path / "data/test") as writer:
        writer.add_query({"CATEGORY": "Bags", "SIMPLE_IMG": jpeg(20), "COMPLEX_IMG": jpeg(21)})
        writer.add_distractor({"jpg": jpeg(22)})
        writer.add_distractor({"jpg": jpeg(23)})
    (tmp_path / "data/products-train.json").write_text("{}")
    (tmp_path / "data/train.writing").mkdir()
    (tmp_path / "data/train.writing/00000.parquet").write_bytes(b"")
    return tmp_path / "data"


def files_of(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_what_is_uploaded(root, hub):
    (root / "train/._00000.parquet").write_bytes(b"attributes, by macOS")
    report = push(root, "me/mine")
    shards = {f"train/{p.name}" for p in (root / "train").glob("[0-9]*.parquet")}
    tests = {"test/products.parquet", "test/distractors/00000.parquet"}
    notes = {"README.md", "train/manifest.json", "test/manifest.json"}
    assert files_of(hub.root / "me/mine") == shards | tests | notes
    assert hub.private == {"me/mine": True}
    assert report["private"] == "yes" and report["files"] == len(shards | tests)
    assert report["bytes"] == sum((root / name).stat().st_size for name in shards | tests)
    assert report["train with"].endswith("train_hf.py --data hf://datasets/me/mine")


def test_datasets_finds_every_split(root, hub):
    push(root, "me/mine")
    repo = str(hub.root / "me/mine")

    def load(name, split):
        return list(datasets.load_dataset(repo, name, split=split, streaming=True))

    assert [row["product_id"] for row in load(None, "train")] == ["p0", "p1", "p2"]
    assert load("products", "train")[0]["images"][0]["image"].size[1] == 9  # typed as an image
    assert [row["CATEGORY"] for row in load("queries", "test")] == ["Bags"]
    assert len(load("distractors", "test")) == 2
    with pytest.raises(ValueError, match="validation"):
        load("queries", "validation")


def test_a_smaller_push_leaves_nothing_of_the_larger(root, hub):
    (hub.root / "me/mine/train").mkdir(parents=True)
    (hub.root / "me/mine/train/00077.parquet").write_bytes(b"old")
    (hub.root / "me/mine/notes.md").write_bytes(b"theirs")
    push(root, "me/mine")
    assert "train/00077.parquet" not in files_of(hub.root / "me/mine")
    assert "notes.md" in files_of(hub.root / "me/mine")


def test_public_only_when_said(root, hub):
    hub.private["me/known"] = False
    with pytest.raises(ValueError, match="me/known is there already and public"):
        push(root, "me/known")
    assert not hub.root.exists()
    assert push(root, "me/known", public=True)["private"] == "no"
    push(root, "me/new", public=True)
    assert hub.private["me/new"] is False


def test_what_check_refuses_is_not_uploaded(root, hub):
    with pytest.raises(ValueError, match="no train/"):
        push(root / "test", "me/mine")
    file = root / "train/00000.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="cannot be used"):
        push(root, "me/mine")
    assert not hub.private and not hub.root.exists()
