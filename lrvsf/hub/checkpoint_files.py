"""A published checkpoint's files: where they are, and one mapping from a name to its tensor.

A tensor of a safetensors file, or of a zipped pickle, is a view of the file, which the system maps into memory and may
drop again: a checkpoint of several files and many gigabytes costs what is in use.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrvsf.hub.misfits import Misfits
from lrvsf.paths import near

if TYPE_CHECKING:
    import torch

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
INDEX = ".safetensors.index.json"  # of a checkpoint in several files: which of them has a tensor
CONFIG = "config.json"
SAFE = (CONFIG, "*.safetensors", f"*{INDEX}")  # what is fetched of a repository: never its code
PICKLES = tuple(f"*{suffix}" for suffix in SUFFIXES[1:])
SNAPSHOT = re.compile(r"/models--([^/]+)--([^/]+)/snapshots/(\w+)$")  # in the cache of the Hub
# OpenAI's own files are TorchScript: a program with its weights. Its package gives the weights alone.
OUT_OF_TORCHSCRIPT = (
    "where OpenAI's clip package is installed, save its weights alone: python -c \"import clip, torch; "
    "torch.save(clip.load(NAME, device='cpu')[0].state_dict(), 'clip.pt')\", NAME being this file or ViT-B/16"
)


@dataclass
class Source:
    """Where a checkpoint is.

    Attributes:
        path: its file, or the index of its files.
        name: as a card shows it, the file's or the Hub's.
        revision: of a repository, the commit.
    """

    path: Path
    name: str
    revision: str | None = None

    def settings(self) -> dict[str, Any]:
        """The published configuration that lies beside it; nothing where there is none.

        Raises ValueError: it is no JSON object.
        """
        path = self.path.with_name(CONFIG)
        if not path.is_file():
            return {}
        return json_object(path)


def find(source: Path, revision: str | None = None) -> Source:
    """A file, the checkpoint of a folder, or that of OWNER/NAME on the Hub, which is downloaded.

    Raises FileNotFoundError: there is none; ValueError: there are several, or `revision` is given of no repository.
    """
    # OWNER/NAME has two parts, and so may have a path: then OWNER is a folder here.
    hub = not source.exists() and len(source.parts) == 2 and not source.is_absolute() and not source.parent.is_dir()
    if revision is not None and not hub:
        raise ValueError(f"revision={revision} is for a name on the Hub, but {source} is a path. Leave it out.")
    path = checkpoint_in(_downloaded(source.as_posix(), revision) if hub else source)
    if cached := SNAPSHOT.search(path.parent.resolve().as_posix()):  # or what `hf download` printed
        owner, name, commit = cached.groups()
        return Source(path, f"{owner}/{name}", commit)
    return Source(path, path.parent.resolve().name if path.name.endswith(INDEX) else path.name)


def checkpoint_in(source: Path) -> Path:
    """The checkpoint's file: `source` itself, or the only one in that folder, or the index of its several files.

    Raises FileNotFoundError: there is none; ValueError: there are several.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise FileNotFoundError(f"There is no file or folder {source}{near(source)}, nor is it OWNER/NAME on the Hub.")
    found = sorted(path for path in source.iterdir() if path.suffix in SUFFIXES)
    if indices := [path for path in source.iterdir() if path.name.endswith(INDEX)]:
        found = indices
    elif safe := [path for path in found if path.suffix == ".safetensors"]:  # the same weights, for other loaders
        found = safe
    if not found:
        raise FileNotFoundError(f"{source} has no file that ends in {', '.join(SUFFIXES)}. Name the checkpoint.")
    if len(found) > 1:
        raise ValueError(f"{source} has several checkpoints: {', '.join(path.name for path in found)}. Name one file.")
    return found[0]


def _downloaded(name: str, revision: str | None) -> Path:
    """A repository's snapshot, without the pickles where there are safetensors."""
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(SAFE)))
    if not any(folder.glob("*.safetensors")):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, *PICKLES]))
    return folder


class MappedTensors(Mapping[str, "torch.Tensor"]):
    """The tensors of safetensors files. Each is read when it is asked for, and not kept.

    Args:
        files: name -> the file that has it.
    """

    def __init__(self, files: dict[str, Path]) -> None:
        from safetensors import safe_open

        self._files = files
        self._open = {path: safe_open(path, "pt") for path in sorted(set(files.values()))}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._open[self._files[name]].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def read_tensors(path: Path) -> Mapping[str, torch.Tensor]:
    """A checkpoint's tensors by name, on the CPU. A training's checkpoint may hold them one level down.

    Raises ValueError: it cannot be read without running what it names, or holds no tensors by name.
    """
    if path.name.endswith(INDEX):
        return MappedTensors(_indexed(path))
    if path.suffix == ".safetensors":
        return MappedTensors(dict.fromkeys(_names_in(path), path))
    return _unpickled(path)


def _names_in(path: Path) -> list[str]:
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except Exception as error:  # of a damaged file every reader raises its own kind
        raise _unreadable(path, error) from error


def _indexed(index: Path) -> dict[str, Path]:
    """name -> file. Index and files must agree: a name that only one of them has is a part of another checkpoint.

    Raises ValueError: they do not, or a file is not there.
    """
    places = json_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError("this index has no weight_map. Download it again.")
    misfits = Misfits()
    shards = sorted({str(name) for name in places.values()})
    # A stranger's index may name a file outside its folder.
    misfits.add("Not a file beside the index", [name for name in shards if not _is_beside(index, name)])
    misfits.check()
    held = {name: shard for shard in shards for name in _names_in(index.with_name(shard))}
    elsewhere = sorted(name for name in places if held.get(name) != places[name])
    misfits.add("In the index, but not in the file that it names", elsewhere)
    misfits.add("In the files, but not in the index", sorted(held.keys() - places.keys()))
    misfits.check()
    return {name: index.with_name(shard) for name, shard in places.items()}


def _is_beside(index: Path, name: str) -> bool:
    return Path(name).name == name and index.with_name(name).is_file()


def json_object(path: Path) -> dict[str, Any]:
    """Raises ValueError: the file is no JSON object."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is no JSON ({error}). Download it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is a {type(found).__name__}, not a JSON object. Download it again.")
    return found


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    """What torch.save wrote, read without running what it names."""
    import torch

    from lrvsf.hub.published import prefix_of

    zipped = zipfile.is_zipfile(path)  # as torch saves by default; only such a file can be mapped into memory
    if zipped and _is_torchscript(path):
        raise ValueError(f"this is a TorchScript archive, a program, which is not run here; {OUT_OF_TORCHSCRIPT}")
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # as above
        raise _unreadable(path, error) from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"this file holds a {type(loaded).__name__}. Give the network's state dict.")
    # One level down as in {"model": {...}, "optimizer": {...}}. Which of two networks is meant would be a guess.
    inner = [value for value in loaded.values() if isinstance(value, Mapping) and prefix_of(value) is not None]
    tensors = {str(name): value for name, value in (inner[0] if len(inner) == 1 else loaded).items()}
    if other := [name for name, value in tensors.items() if not isinstance(value, torch.Tensor)]:
        raise ValueError(f"{other[:5]} are no tensors. Give the network's state dict.")
    return tensors


def _is_torchscript(path: Path) -> bool:
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
    return False


def _unreadable(path: Path, error: Exception) -> ValueError:
    told = (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(
        f"{path.name} cannot be read as weights alone ({told:.120}), and nothing is unpickled here. Save the state "
        "dict as safetensors, where the file can be trusted."
    )
