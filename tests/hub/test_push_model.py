from types import SimpleNamespace

from huggingface_hub.utils import filter_repo_objects

from lrvsf.hub import push


def test_the_model_goes_up_with_its_card_and_no_pickle(tmp_path, monkeypatch):
    names = ["README.md", "model.safetensors", "modeling_condvit.py", "runs/a/events.out"]
    left = ["training_args.bin", "checkpoint-3/model.safetensors", "checkpoint-3/optimizer.pt", "validation/p.parquet"]
    for name in names + left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    sent = {}

    class Api:
        def __init__(self, token=None):
            sent["token"] = token

        def create_repo(self, repo, private, exist_ok):
            sent["private"] = private
            return SimpleNamespace(repo_id=f"me/{repo}")

        def upload_folder(self, repo_id, folder_path, ignore_patterns, **kwargs):
            files = [str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()]
            sent[repo_id] = sorted(filter_repo_objects(files, ignore_patterns=ignore_patterns))

    monkeypatch.setattr(push, "HfApi", Api)
    assert push.push_model(tmp_path, "bags", private=True, token="t") == "https://huggingface.co/me/bags"
    assert sent == {"token": "t", "private": True, "me/bags": sorted(names)}
