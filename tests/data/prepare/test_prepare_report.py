import json

import pytest

import prepare_lrvsf
from lrvsf.data.prepare.report import as_table, write_report


def test_table_is_aligned_and_nested():
    assert as_table({"urls": 1200, "failed": {"404": 3, "timeout": 10}}) == (
        "urls       1,200\nfailed\n  404          3\n  timeout     10"
    )


def test_a_report_is_whole_or_absent(tmp_path):
    write_report(tmp_path / "a/report.json", {"é": 1})
    assert json.loads((tmp_path / "a/report.json").read_text()) == {"é": 1}
    with pytest.raises(TypeError):
        write_report(tmp_path / "a/report.json", {"set": {1}})
    assert json.loads((tmp_path / "a/report.json").read_text()) == {"é": 1}


def test_a_step_prints_its_report_and_refuses_in_one_line(tmp_path, capsys):
    small = ["--products", "2", "--test_products", "1", "--distractors", "1", "--image-size", "32"]
    prepare_lrvsf.app(["mini", str(tmp_path / "m"), *small], standalone_mode=False)
    assert capsys.readouterr().out.splitlines()[2].split() == ["training", "products", "2"]
    with pytest.raises(SystemExit, match="prepare_lrvsf.py mini: Mini LRVS-F needs at least one"):
        prepare_lrvsf.app(["mini", str(tmp_path / "n"), "--products", "0"], standalone_mode=False)
