"""The benchmark of torchao's int8 runs where torchao is; nothing else needs it."""

import pytest
from made import tiny_condvit

pytest.importorskip("torchao", reason="pip install torchao", exc_type=ImportError)


def test_each_way_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend("benchmarks")
    import bench_torchao

    tiny_condvit().save_pretrained(tmp_path)
    bench_torchao.main(["--models", str(tmp_path), "--batches", "2", "--seconds", "0.1", "--markdown"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert [row[2].strip() for row in rows] == ["float32", "bfloat16", "int8 weights", "int8 dynamic"]
    assert all(float(row[5]) > 0.99 for row in rows)
