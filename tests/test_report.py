import io
import json
import shlex
import sys

import pytest

import prepare_lrvsf
from lrvsf.command import Command, explain, run
from lrvsf.report import EXAMPLES, Ledger, as_table, write_report


def test_table_is_aligned_and_nested():
    assert as_table({"urls": 1200, "failed": {"404": 3, "timeout": 10}}) == (
        "urls       1,200\nfailed\n  404          3\n  timeout     10"
    )


def test_a_long_command_stands_on_lines_of_its_own():
    words = ["accelerate", "launch", "evaluate_lrvsf.py", "--model", "runs/my shop", "--data_root", "data/my shop/test"]
    report = {"rows": 3, "to evaluate": Command(words), "to train": Command(["make"])}
    assert as_table(report) == (
        "rows         3\n"
        "to evaluate\n"
        "    accelerate launch evaluate_lrvsf.py --model 'runs/my shop' \\\n"
        "        --data_root 'data/my shop/test'\n"
        "to train     make"
    )
    assert shlex.split(json.loads(json.dumps(report))["to evaluate"]) == words


def test_a_report_is_whole_or_absent(tmp_path):
    write_report(tmp_path / "a/report.json", {"é": 1})
    assert json.loads((tmp_path / "a/report.json").read_text()) == {"é": 1}
    with pytest.raises(TypeError):
        write_report(tmp_path / "a/report.json", {"set": {1}})
    assert json.loads((tmp_path / "a/report.json").read_text()) == {"é": 1}


def test_a_step_prints_its_report_and_refuses_in_one_line(tmp_path, capsys):
    small = ["--products", "2", "--test_products", "1", "--distractors", "1", "--image-size", "32"]
    prepare_lrvsf.main(["mini", str(tmp_path / "m"), *small])
    assert capsys.readouterr().out.splitlines()[2].split() == ["training", "products", "2"]
    with pytest.raises(ValueError, match="Mini LRVS-F needs at least one"):
        prepare_lrvsf.main(["mini", str(tmp_path / "n"), "--products", "0"])


@pytest.mark.survives(
    "ids and categories with controls of a terminal, or not UTF-8", "written out; the report is whole"
)
def test_what_cannot_be_seen_is_written_out(tmp_path, capsys, monkeypatch):
    report = {"\x1b]0;title\x07": "a\u202eb", "nested": {"Gr\udc81n": 1}, "caf\u00e9": "\u200b"}
    assert as_table(report).split() == [
        r"\x1b]0;title\x07",
        r"a\u202eb",
        "nested",
        r"Gr\udc81n",
        "1",
        "caf\u00e9",
        r"\u200b",
    ]
    write_report(tmp_path / "report.json", report)
    assert json.loads((tmp_path / "report.json").read_text()) == report

    assert explain(ValueError("no \x1b[2J here\nnor there")) == "no \\x1b[2J here\nnor there"


def test_a_terminal_without_umlauts_gets_its_report(monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    run(lambda: print(as_table({"caf\u00e9": 1})), "prepare_lrvsf.py")
    assert screen.buffer.getvalue() == b"caf\\xe9  1\n"


def test_a_ledger_counts_all_and_names_the_first():
    ledger = Ledger()
    assert not ledger and ledger.report("not used") == {} and ledger.examples() == {}
    ledger.add("no image", "line 1")
    ledger.add_all("no product_id", (f"line {number}\x1b[2J" for number in range(2, 2 + EXAMPLES + 2)))
    ledger.add("too large")
    names = [f"line {number}\\x1b[2J" for number in (2, 3, 4)]
    assert ledger.table() == {"no product_id": 5, "no image": 1, "too large": 1}
    assert list(ledger.table())[0] == "no product_id", "most frequent first"
    assert ledger.report("not used") == {
        "not used": ledger.table(),
        "not used, the first": {"no product_id": "; ".join(names), "no image": "line 1"},
    }
    assert ledger.examples()["no product_id"] == {"count": 5, "such as": ", ".join(names)}


def test_ledgers_of_workers_merge_into_what_one_would_have_counted():
    counted = [("empty", "a"), ("empty", "b"), ("damaged", "c"), ("empty", "d"), ("empty", "e"), ("damaged", "f")]
    one, parts = Ledger(), [Ledger(), Ledger()]
    for number, (reason, name) in enumerate(counted):
        one.add(reason, name)
        parts[number // 3].add(reason, name)
    merged = Ledger()
    for part in parts:
        merged.merge(part)
    assert (merged.counts, merged.first) == (one.counts, one.first)
    faults = Ledger()
    faults.take("images without bytes", merged, "empty")
    faults.take("never seen", merged, "absent")
    assert faults.examples() == {"images without bytes": {"count": 4, "such as": "a, b, d"}}
