"""The benchmarks of ONNX graphs run: what needs no rounding loses nothing, and every way has its line."""

import sys
from pathlib import Path

import pytest
from made import write_test_set

pytest.importorskip("onnxruntime", reason="pip install -r requirements-onnx.txt", exc_type=ImportError)
sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))


def rows_of_table(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"][2:]


def test_what_each_export_costs(tiny_folder, tmp_path, capsys, monkeypatch):
    import bench_onnx

    monkeypatch.setattr(bench_onnx, "PICTURES", 8)
    for name in ("test", "validation"):
        write_test_set(tmp_path / name, products=8, distractors=4)
    bench_onnx.main([str(tiny_folder()), str(tmp_path), "--markdown"])
    rows = rows_of_table(capsys.readouterr().out)
    assert [row[0] for row in rows[:3]] == ["torch float32", "ONNX float32", "ONNX int8, as `--int8` writes it"]
    assert len(rows) == 3 + 1 + len(bench_onnx.DYNAMIC) + len(bench_onnx.STATIC) + 2
    assert rows[1][1:4] == [rows[0][1], "1.0000", "1.0000"], "float32 graphs give torch's rows"
    assert all(0.5 < float(row[2]) <= 1 and float(row[5]) > 0 for row in rows), "a cosine, and a rate"


def test_how_fast_each_way_embeds(capsys):
    import bench_embed

    bench_embed.main(["--models", "tiny", "--batches", "2", "--seconds", "0.05", "--onnx", "--markdown"])
    rows = rows_of_table(capsys.readouterr().out)
    assert [row[2] for row in rows] == ["float32", "bfloat16", "ONNX float32", "ONNX int8"]
    assert all(float(cell) > 0 for row in rows for cell in row[3:])
