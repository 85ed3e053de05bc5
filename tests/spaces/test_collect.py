"""The leaderboard's collector: every score of every card, or the reason why not."""

import json
import sys
from pathlib import Path

import pytest
from cards import CARDS, CardHub, card, write_cards
from huggingface_hub import constants

SPACE = Path(__file__).parents[2] / "spaces/leaderboard"
sys.path.insert(0, str(SPACE))

from collect import Board, collect, collect_folder, collect_hub, read_card, read_metric, read_results  # noqa: E402


def by_name(board):
    return {entry.model: entry for entry in board.entries}, {
        problem.model: problem.reason for problem in board.problems
    }


def test_cards_good_odd_and_broken(tmp_path):
    board = Board()
    collect_folder(board, write_cards(tmp_path))
    entries, problems = by_name(board)
    assert set(entries) | set(problems) == set(CARDS)  # nobody is dropped in silence
    good = entries["good"]
    assert (good.conditioning, good.dim, good.source) == ("category", 512, "model-index")
    assert good.scores == {(1, 10000): (95.1, 0.7), (1, 100000): (88.0, 1.1), (5, 10000): (99.2, 0.2)}
    newer = entries["newer"]
    assert (newer.scores, newer.conditioning, newer.source) == ({(1, 10000): (91.5, 0.9)}, "none", ".eval_results")
    assert entries["odd"].scores == {(1, 100000): (70.25, None)}
    odd = [problem.reason for problem in board.problems if problem.model == "odd"]
    assert odd == [
        "recall_at_1|10000 is 'ninety', no number of per cent",
        "'recall@5' is no recall of the form recall_at_K|DISTRACTORS",
    ]
    assert problems["contradicting"] == "R@1 among 10,000 is 90.0 in its model-index, 95.0 in .eval_results"
    assert entries["contradicting"].scores == {(1, 10000): (90.0, 1.0)}
    assert "beyond" not in entries and "from 0 to 100" in board.problems[0].reason + problems["beyond"]
    assert problems["broken"].startswith("its metadata cannot be read: ")
    assert problems["other"] == "it has no scores on Slep/LAION-RVS-Fashion"
    assert problems["list"].startswith(".eval_results/lrvsf.yaml cannot be read: ")


def test_the_published_scores_come_first_and_a_card_of_that_name_takes_their_place():
    board = collect(hub=False)
    assert [entry.model for entry in board.entries] == ["Slep/CondViT-B16-cat", "Slep/CondViT-B16-txt"]
    assert board.entries[0].scores[1, 1_000_000] == (74.49, 1.23) and board.entries[1].scores[1, 10_000] == (
        94.18,
        None,
    )
    entry, _ = read_card("slep/condvit-b16-cat", "url", {"README.md": CARDS["good"]["README.md"]})
    board.add(entry, [], entry.model)
    assert [entry.url for entry in board.entries] == ["https://huggingface.co/Slep/CondViT-B16-txt", "url"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub = CardHub(["good", "odd", "newer"])
    yield hub
    hub.close()


def test_a_hub(hub):
    board = Board()
    collect_hub(board, hub.url)
    entries, problems = by_name(board)
    assert hub.tags == ["lrvsf-benchmark"]
    assert list(entries) == ["me/good", "me/odd", "me/newer"] and set(problems) == {"me/odd", "me/gone"}
    assert entries["me/good"].url == f"{hub.url}/me/good" and entries["me/good"].scores[1, 10_000] == (95.1, 0.7)
    assert problems["me/gone"].startswith("its card cannot be had: ") and "404" in problems["me/gone"]


def test_no_hub_and_no_folder_are_problems_and_no_end(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    board = collect([tmp_path / "nowhere", tmp_path], endpoint="http://127.0.0.1:9")
    assert len(board.entries) == 2
    assert [problem.reason[:30] for problem in board.problems] == [
        "the Hub cannot be asked: [Errn", "there is no such folder", "it holds no card (README.md) a",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "value, score",
    [
        ("93.44 ± 0.83", (93.44, 0.83)),
        ("93.44±0.83", (93.44, 0.83)),
        ("93.44 +/- 0.83 %", (93.44, 0.83)),
        ("93 +- 1", (93.0, 1.0)),
        (93.44, (93.44, None)),
        (100, (100.0, None)),
        ("0", (0.0, None)),
    ],
)
def test_values_that_people_write(value, score):
    assert read_metric("recall_at_10|500", value) == ((10, 500), score, None)


@pytest.mark.parametrize("value", ["", "n/a", None, True, float("nan"), float("inf"), -1, 101, [93], "93,44", "9e1"])
def test_values_that_are_none(value):
    assert read_metric("recall_at_1|10000", value)[2]


def test_a_score_told_twice(tmp_path):
    _, problems = read_card("a", None, {"README.md": card(("recall_at_1|10", 5), ("recall_at_1|10", 6))})
    assert problems == ["recall_at_1|10 is there twice, as 5.0 and as 6.0"]


def test_results_of_an_evaluation():
    results = {
        "protocol": "leaderboard", "restrict_to_category": False, "conditioning": "none", "embedding_dim": 64,
        "galleries": {
            "10000": {"recall": {"1": {"mean": 0.5, "std": 0.01}}},
            "1000000": {"recall": {"1": {"mean": 0.4, "std": 0.01}}, "marked": "only 5,000 distractors"},
        },
    }  # fmt: skip
    entry, problems = read_results("run", json.dumps(results))
    assert (entry.scores, entry.dim) == ({(1, 10000): (50.0, 1.0)}, 64)
    assert problems == ["1,000,000 distractors are left out: only 5,000 distractors"]
    for change in ({"protocol": "bootstrap"}, {"restrict_to_category": True}, {"galleries": 3}):
        entry, problems = read_results("run", json.dumps(results | change))
        assert entry is None and len(problems) == 1
