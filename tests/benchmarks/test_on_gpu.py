"""The page of a GPU's figures, rehearsed on a CPU: every section runs, and what fails is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu_page
from bench_train import largest, table
from gpu_checks import gradient_error, relative

ROOT = Path(__file__).parents[2]


def on_gpu(*flags: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(ROOT / "benchmarks" / "on_gpu.sh"), *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_every_section_is_rehearsed_without_a_gpu(tmp_path):
    page = tmp_path / "gpu.md"
    done = on_gpu("--tiny", "--out", str(page))
    text = page.read_text()
    assert done.returncode == 0, text + done.stderr[-3000:]
    for _, heading in gpu_page.SECTIONS.values():
        assert f"## {heading}" in text
    assert "This failed" not in text and "Left out" not in text and "| NO" not in text
    assert text.count("bit for bit") == 2, "the same run again, and one resumed from its middle"
    assert "GradCache" in text and "--shard_weights" in text and "assets/mini-condvit" in text


def test_without_a_gpu_only_a_rehearsal_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu_page.py", "--out", str(tmp_path / "gpu.md")])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu_page.main()
    assert "no GPU" in capsys.readouterr().err and not (tmp_path / "gpu.md").exists()


@pytest.mark.parametrize(("fixed", "each"), [(100, 3), (0, 1), (5000, 64)])
def test_the_largest_batch_fills_the_room(fixed, each):
    found = largest(lambda batch: fixed + each * batch, room=10_000)
    assert fixed + each * found <= 10_000 < fixed + each * (found + 1)


def test_no_batch_is_found_where_there_is_no_room():
    assert largest(lambda batch: 100 + batch, room=50) == 0


def test_errors_are_relative_to_all_numbers_of_a_kind():
    ones = torch.ones(4)
    assert relative(ones + 0.5, ones) == pytest.approx(0.5)
    reference = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}  # length 5
    assert gradient_error({"a": torch.tensor([3.0]), "b": torch.tensor([4.5])}, reference) == pytest.approx(0.1)


def test_tables_are_for_a_terminal_or_a_page():
    rows = [["x", 10], ["longer", 2]]
    assert table(["a", "b"], rows).splitlines() == ["a       b", "x       10", "longer  2"]
    assert table(["a", "b"], rows, markdown=True).splitlines() == [
        "| a      | b  |",
        "| ------ | -- |",
        "| x      | 10 |",
        "| longer | 2  |",
    ]
