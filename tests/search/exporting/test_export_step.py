"""`search_catalog.py export`: what it refuses, what it leaves behind, what it prints."""

import shutil

import pyarrow.parquet as pq
import pytest

from lrvsf.search.exporting import write_qdrant
from lrvsf.search.exporting.databases import DATABASES
from lrvsf.search.generations import Generations


@pytest.fixture
def copy(odd_shop, tmp_path):
    return shutil.copytree(odd_shop, tmp_path / "catalog")


def test_what_is_printed(odd_shop, tmp_path, step, capsys):
    step("export", odd_shop, tmp_path / "out", "--to", "milvus")
    told = capsys.readouterr().out
    for part in ("milvus", "1,497", "64", "float32", "Unit_price", "metadata_vector", str(tmp_path / "out/README.md")):
        assert part in told, part
    readme = (tmp_path / "out/README.md").read_text()
    assert "`/models/old`" in readme and "`a.b` is `a_b`" in readme and "jobs/import/create" in readme
    assert not list(tmp_path.glob("*.writing"))


@pytest.mark.parametrize("to", ["parquet", "qdrant", "milvus", "pgvector", "elasticsearch"])
def test_every_readme_says_how_to_load(exported, to):
    folder = exported(to)
    readme = (folder / "README.md").read_text()
    assert readme.startswith(f"# 1,497 items for {to}\n") and "```" in readme and "{" not in readme.split("```")[0]
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "README.md"]
    for path in files:
        place = path.relative_to(folder)
        assert str(place) in readme or f"{place.parent}/*{path.suffix}" in readme or path.name == "items.copy"


def test_what_is_refused(copy, tmp_path, step):
    def refused(error, match, *words):
        with pytest.raises(error, match=match):
            step("export", *words)

    out = tmp_path / "out"
    refused(FileNotFoundError, "none is no catalog.*make one with", tmp_path / "none", out, "--to", "parquet")
    refused(ValueError, "to=chroma is unknown; take parquet", copy, out, "--to", "chroma")
    refused(ValueError, "dtype=int8 is no form of vectors for parquet", copy, out, "--to", "parquet", "--dtype", "int8")
    refused(ValueError, "is inside .*catalog, which", copy, copy / "segments/out", "--to", "parquet")
    refused(FileExistsError, "is not empty; name a new folder", copy, copy, "--to", "parquet")
    (tmp_path / "file").write_text("x")
    refused(NotADirectoryError, "file is a file", copy, tmp_path / "file", "--to", "parquet")
    refused(FileNotFoundError, "file is no catalog", tmp_path / "file", out, "--to", "parquet")
    assert not out.exists()
    (tmp_path / "table/_versions").mkdir(parents=True)
    refused(ValueError, "is a Lance table; export the catalog", tmp_path / "table", out, "--to", "parquet")


def test_a_catalog_of_one_item_without_its_index(copy, tmp_path, step):
    step("remove", copy, "--where", "id <> 'x7'")
    for path in Generations(copy).answering().folder.glob("index.*"):
        path.unlink()
    step("export", copy, tmp_path / "out", "--to", "qdrant")
    assert (tmp_path / "out/points/00000.json").read_text().count('"vector"') == 2  # its own, and a column of that name


def test_a_missing_client_is_refused(copy, tmp_path, step, monkeypatch):
    monkeypatch.setattr("lrvsf.search.exporting.export_step.find_spec", lambda name: None)
    with pytest.raises(ImportError, match='needs the client of LanceDB: pip install "lrvsf.databases."'):
        step("export", copy, tmp_path / "out", "--to", "lancedb")


@pytest.mark.parametrize("to", DATABASES)
def test_a_damaged_file_is_named_and_nothing_is_left(copy, tmp_path, step, to):
    if to == "lancedb":
        pytest.importorskip("lancedb", reason="make databases has this client")
    path = Generations(copy).answering().segments[1].items
    data = bytearray(path.read_bytes())
    group = pq.ParquetFile(path).metadata.row_group(1)
    columns = (group.column(place) for place in range(group.num_columns))
    (column,) = (column for column in columns if column.path_in_schema == "title")
    start = column.dictionary_page_offset or column.data_page_offset
    for place in range(start, start + column.total_compressed_size):
        data[place] ^= 0xA5
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        step("export", copy, tmp_path / "out", "--to", to)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.writing"))


def test_an_export_that_fails_leaves_nothing(copy, tmp_path, step, monkeypatch):
    monkeypatch.setattr(write_qdrant, "plain_rows", lambda cells: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step("export", copy, tmp_path / "out", "--to", "qdrant")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.writing"))
