"""Collects scores on LAION-RVS-Fashion from model cards, on the Hub and in folders; what cannot be read has a reason.

A card tells its scores twice: in its `model-index`, as text such as "93.44 ± 0.83" under types such as
recall_at_1|10000, and in `.eval_results/*.yaml`, the Hub's newer form, as numbers. Cards of other authors have one of
them, and mistakes. Whatever is not understood is listed with its reason beside the scores that were.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, parse_eval_result_entries
from huggingface_hub.utils import get_session, validate_repo_id

TAG = "lrvsf-benchmark"
DATASET = "Slep/LAION-RVS-Fashion"
HUB = "https://huggingface.co"
PUBLISHED = Path(__file__).with_name("published.yaml")
MAX_CARD_BYTES = 2**20
CONNECT_SECONDS = 10
METRIC = re.compile(r"recall_at_(\d+)\|(\d+)")
VALUE = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*(?:(?:±|\+/?-)\s*(\d+(?:\.\d+)?)\s*)?%?\s*")
Point = tuple[int, int]  # K, and the number of distractors


@dataclass
class Entry:
    """A model's scores.

    Attributes:
        scores: (K, gallery size) -> (mean in %, deviation over folds in % or None).
        source: where the scores stand.
    """

    model: str
    url: str | None
    source: str
    conditioning: str = "not told"
    dim: int | None = None
    scores: dict[Point, tuple[float, float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """What could not be read of a model's card, and why."""

    model: str
    reason: str


@dataclass
class Board:
    """What was collected, in the order in which it was found."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, entry: Entry | None, problems: Iterable[str], model: str) -> None:
        """A model that is there already under the same conditioning is replaced: the published rows come first."""
        self.problems += [Problem(model, reason) for reason in problems]
        if entry is None:
            return
        same = (entry.model.lower(), entry.conditioning)
        self.entries = [one for one in self.entries if (one.model.lower(), one.conditioning) != same]
        self.entries.append(entry)


def collect(folders: Iterable[str | Path] = (), hub: bool = True, endpoint: str | None = None) -> Board:
    """The published scores, those on the Hub, and those of folders.

    Args:
        folders: of models, of several models' folders, or of what evaluate_lrvsf.py wrote.
        endpoint: another Hub.
    """
    board = published()
    if hub:
        collect_hub(board, endpoint)
    for folder in folders:
        collect_folder(board, Path(folder))
    return board


def published() -> Board:
    """The scores that stand in papers and cards of before, with their sources (published.yaml)."""
    board = Board()
    for row in yaml.safe_load(PUBLISHED.read_text(encoding="utf-8")):
        entry = Entry(row["model"], row["url"], row["source"], row["conditioning"])
        for name, value in row["scores"].items():
            point, score, reason = read_metric(name, value)
            if reason:
                raise ValueError(f"{PUBLISHED}: {row['model']}: {reason}")
            entry.scores[point] = score
        board.entries.append(entry)
    return board


def collect_hub(board: Board, endpoint: str | None = None) -> None:
    """Adds the models that bear the tag. A Hub or a model that cannot be read is a problem, not an end."""
    api = HfApi(endpoint=endpoint)
    try:
        get_session().head(api.endpoint, timeout=CONNECT_SECONDS)  # the client would try again for half a minute
        names = [model.id for model in api.list_models(filter=TAG)]
    except Exception as error:  # of httpx, or of httpx2, which have no parent in common
        board.problems.append(Problem(api.endpoint, f"the Hub cannot be asked: {_first_line(error)}"))
        return
    for name in names:
        try:
            validate_repo_id(name)
            files = api.model_info(name, files_metadata=True, timeout=30).siblings or []
            wanted = {file.rfilename: file.size or 0 for file in files if _is_card(file.rfilename)}
            if large := [path for path, size in wanted.items() if size > MAX_CARD_BYTES]:
                raise ValueError(f"{large[0]} has {wanted[large[0]]:,} bytes, more than a card's {MAX_CARD_BYTES:,}")
            texts = {path: Path(api.hf_hub_download(name, path)).read_text(encoding="utf-8") for path in wanted}
        except Exception as error:
            board.add(None, [f"its card cannot be had: {_first_line(error)}"], name)
            continue
        board.add(*read_card(name, f"{api.endpoint}/{name}", texts), name)


def collect_folder(board: Board, folder: Path) -> None:
    """Adds a model's folder, or each folder and each `.md` file in a folder of them, by name."""
    if not folder.is_dir():
        board.problems.append(Problem(str(folder), "there is no such folder"))
        return
    if _has_scores(folder):
        places = [folder]
    else:
        places = sorted(path for path in folder.iterdir() if path.suffix == ".md" or _has_scores(path))
        if not places:
            board.problems.append(Problem(str(folder), "it holds no card (README.md) and no results.json"))
    for place in places:
        try:
            entry, problems = _read_place(place)
        except (OSError, UnicodeDecodeError) as error:
            entry, problems = None, [f"it cannot be read: {_first_line(error)}"]
        board.add(entry, problems, place.name)


def _read_place(place: Path) -> tuple[Entry | None, list[str]]:
    """A file, or a model's or an evaluation's folder. A card is what its author publishes, so it comes first."""
    if place.is_file():
        return read_card(place.stem, None, {"README.md": _text(place)})
    cards = [path for path in (place / "README.md", *sorted(place.glob(".eval_results/*.yaml"))) if path.is_file()]
    if cards:
        return read_card(place.name, None, {path.relative_to(place).as_posix(): _text(path) for path in cards})
    return read_results(place.name, _text(place / "results.json"))


def read_card(model: str, url: str | None, texts: dict[str, str]) -> tuple[Entry | None, list[str]]:
    """What a card tells.

    Args:
        texts: "README.md" and ".eval_results/NAME.yaml", as far as there are some.

    Returns: the scores, None where there are none; and what is wrong with the card.
    """
    problems: list[str] = []
    older, newer = Entry(model, url, "model-index"), Entry(model, url, ".eval_results")
    if "README.md" in texts:
        _read_model_index(older, texts["README.md"], problems)
    for path in sorted(texts):
        if path.startswith(".eval_results/"):
            _read_eval_results(newer, path, texts[path], problems)
    for point in sorted(older.scores.keys() & newer.scores.keys()):
        (one, _), (other, _) = older.scores[point], newer.scores[point]
        if abs(one - other) > 0.005 + 1e-9:  # both are rounded to hundredths
            problems.append(f"R@{point[0]} among {point[1]:,} is {one} in its model-index, {other} in .eval_results")
    entry = older if older.scores else newer
    if not entry.scores:
        return None, problems or [f"it has no scores on {DATASET}"]
    entry.scores = {**newer.scores, **entry.scores}
    return entry, problems


def _read_model_index(entry: Entry, card: str, problems: list[str]) -> None:
    try:
        results = ModelCard(card).data.eval_results or []
    except (ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        problems.append(f"its metadata cannot be read: {_first_line(error)}")
        return
    for result in results:
        if (result.dataset_type, result.dataset_split) != (DATASET, "test"):
            continue  # other benchmarks, and the training's own validation
        if result.metric_type == "conditioning":
            entry.conditioning = str(result.metric_value)
        elif result.metric_type == "embedding_dim":
            entry.dim = result.metric_value if isinstance(result.metric_value, int) else None
        elif str(result.metric_type).startswith("recall"):
            _take(entry, result.metric_type, result.metric_value, problems)


def _read_eval_results(entry: Entry, path: str, text: str, problems: list[str]) -> None:
    try:
        results = parse_eval_result_entries(yaml.safe_load(text) or [])
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        problems.append(f"{path} cannot be read: {_first_line(error)}")
        return
    for result in results:
        if result.dataset_id != DATASET:
            continue
        notes = str(result.notes or "")
        if found := re.search(r"conditioning (\w+)", notes):
            entry.conditioning = found[1]
        spread = re.search(r"± (\d+(?:\.\d+)?)", notes)
        value = f"{result.value} ± {spread[1]}" if spread else result.value
        _take(entry, result.task_id, value, problems)


def read_results(model: str, text: str) -> tuple[Entry | None, list[str]]:
    """What a results.json tells, if it is the leaderboard's protocol that it was measured by."""
    try:
        results: dict[str, Any] = json.loads(text)
        if (protocol := results["protocol"]) != "leaderboard":
            return None, [f"its results.json is of the protocol {protocol!r}, whose scores do not compare"]
        if results["restrict_to_category"]:
            return None, ["its galleries were restricted to the category, and do not compare"]
        if results.get("query_views"):
            return None, ["its queries are means of several views, and do not compare"]
        entry = Entry(model, None, "results.json", results["conditioning"], results["embedding_dim"])
        problems: list[str] = []
        for size, gallery in results["galleries"].items():
            if "marked" in gallery:
                problems.append(f"{int(size):,} distractors are left out: {gallery['marked']}")
                continue
            for k, recall in gallery["recall"].items():
                value = f"{100 * recall['mean']:.2f} ± {100 * recall['std']:.2f}"
                _take(entry, f"recall_at_{k}|{size}", value, problems)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return None, [f"its results.json cannot be read: {error!r}"]
    return (entry if entry.scores else None), problems


def _take(entry: Entry, name: str, value: object, problems: list[str]) -> None:
    point, score, reason = read_metric(name, value)
    if reason is None and point in entry.scores and entry.scores[point] != score:
        reason = f"{name} is there twice, as {entry.scores[point][0]} and as {score[0]}"
    if reason is not None:
        problems.append(reason)
    else:
        entry.scores[point] = score


def read_metric(name: str, value: object) -> tuple[Point, tuple[float, float | None], str | None]:
    """A metric's (K, gallery size) and (mean, deviation) in %, and None; or what is wrong with it.

    >>> read_metric("recall_at_1|10000", "93.44 ± 0.83")
    ((1, 10000), (93.44, 0.83), None)
    """
    nothing = (0, 0), (0.0, None)
    found = METRIC.fullmatch(str(name))
    if found is None:
        return *nothing, f"{str(name)[:40]!r} is no recall of the form recall_at_K|DISTRACTORS"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    told = VALUE.fullmatch(f"{value}" if number and math.isfinite(value) else str(value))
    if told is None:
        return *nothing, f"{name} is {str(value)[:40]!r}, no number of per cent"
    mean, spread = float(told[1]), float(told[2]) if told[2] else None
    if not 0 <= mean <= 100:
        return *nothing, f"{name} is {mean}, which is not from 0 to 100"
    return (int(found[1]), int(found[2])), (mean, spread), None


def _has_scores(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("README.md", "results.json", ".eval_results"))


def _is_card(path: str) -> bool:
    return path == "README.md" or re.fullmatch(r"\.eval_results/[^/]+\.yaml", path) is not None


def _text(path: Path) -> str:
    if (size := path.stat().st_size) > MAX_CARD_BYTES and path.name != "results.json":
        raise OSError(f"{path.name} has {size:,} bytes, more than a card's {MAX_CARD_BYTES:,}")
    return path.read_text(encoding="utf-8")


def _first_line(error: BaseException) -> str:
    lines: Iterator[str] = iter(str(error).strip().splitlines() or [type(error).__name__])
    return next(lines)[:200]
