"""The table of widths: a line for each, and what takes twice as long shows as 2."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import bench_widths


def test_a_line_for_each_width(capsys):
    bench_widths.main(["--widths", "64", "128", "--layers", "1", "--turns", "1", "--markdown"])
    head, rule, *lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, rule, *lines)]
    assert {len(row) for row in cells} == {5} and [row[0] for row in cells[2:]] == ["64", "128"]
    assert all(float(cell) > 0 for row in cells[2:] for cell in row[1:])


def test_the_gain_is_float32_s_time_over_bfloat16_s(monkeypatch):
    clock = iter([0, 9, 9, 10, 0, 4, 4, 6])
    monkeypatch.setattr(bench_widths.time, "process_time", lambda: next(clock))
    assert bench_widths.gain(lambda: None, 1) == pytest.approx(2), "the first turn, of 9, is not counted"
