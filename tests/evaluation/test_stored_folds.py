"""Published draws: what is read, what is refused, and that nothing in a pickle is ever run."""

import collections
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lrvsf.evaluation.stored_folds import ArraysOnly, StoredFolds, convert, main, read_indices

PUBLISHED = {
    "test_subsets": [np.array([70, 71, 70]), np.array([72, 71, 71])],
    "dist_0_subsets": [np.array([]), np.array([])],
    "dist_2_subsets": [np.array([5, 6]), np.array([6, 6])],
    "dist_4_subsets": [np.array([5, 5, 9, 6]), np.array([9, 6, 5, 5])],
}


def pickled(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


class Runs:
    """What a malicious pickle does."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_folds_keep_their_draws_from_pickle_to_rows(tmp_path, capsys, protocol):
    main([str(pickled(tmp_path / "ids.pkl", PUBLISHED, protocol)), str(tmp_path / "folds.safetensors")])
    assert "2 folds, sizes 2, 4" in capsys.readouterr().out
    folds = StoredFolds(tmp_path / "folds.safetensors")
    products = folds.products(["72", "70", "71"])
    assert [rows.tolist() for rows in products.rows] == [[1, 2, 1], [0, 2, 2]] and products.missing == 0
    distractors = folds.distractors(4, ["6", "other", "5", "5"])  # 9 could not be had
    assert [rows.tolist() for rows in distractors.rows] == [[2, 2, 0], [0, 2, 2]]
    assert (distractors.missing, distractors.draws) == (2, 8)
    with pytest.raises(ValueError, match="None of the products of .*'70'.* such as '1'"):
        folds.products(["1", "2"])


def test_labels_become_product_ids(tmp_path):
    source = pickled(tmp_path / "ids.pkl", PUBLISHED)
    table = pa.table({"PRODUCT_ID": ["e", "f", "g"], "__index_level_0__": [5, 6, 9]})
    described = {b"pandas": b'{"index_columns": ["__index_level_0__"], "columns": []}'}
    pq.write_table(table.replace_schema_metadata(described), tmp_path / "stored.parquet")
    ranged = {b"pandas": b'{"index_columns": [{"kind": "range", "start": 5, "stop": 10, "step": 1}], "columns": []}'}
    pq.write_table(
        pa.table({"PRODUCT_ID": ["e", "f", "-", "-", "g"]}).replace_schema_metadata(ranged), tmp_path / "range.parquet"
    )
    for name in ("stored", "range"):
        convert(source, tmp_path / "folds.safetensors", tmp_path / f"{name}.parquet")
        rows = StoredFolds(tmp_path / "folds.safetensors").distractors(4, ["g", "f", "e"]).rows
        assert [fold.tolist() for fold in rows] == [[2, 2, 0, 1], [0, 1, 2, 2]]
    pq.write_table(table.slice(0, 2).replace_schema_metadata(described), tmp_path / "stored.parquet")
    with pytest.raises(ValueError, match=r"has no row '9'.*\(1 such rows\)"):
        convert(source, tmp_path / "folds.safetensors", tmp_path / "stored.parquet")


def test_only_arrays_and_containers_are_unpickled(tmp_path):
    harmless = [np.arange(3), torch.arange(3), {"a": (1, 2.5, None)}, {"set"}, collections.OrderedDict(a=b"1")]
    harmless.append(np.array(["x", None], dtype=object))
    for protocol in (4, 5):
        with open(pickled(tmp_path / "harmless.pkl", harmless, protocol), "rb") as file:
            found = ArraysOnly(file).load()
        assert str(found) == str(harmless)
    for number, value in enumerate([Runs(tmp_path / "made"), {"test_subsets": [Runs(tmp_path / "made")]}, os.system]):
        source = pickled(tmp_path / f"{number}.pkl", value)
        with pytest.raises(pickle.UnpicklingError, match="posix.* is not loaded"):
            convert(source, tmp_path / "folds.safetensors")
    hidden = {"test_subsets": [torch.nn.Linear(1, 1)]}
    with pytest.raises(pickle.UnpicklingError, match=r"torch\.nn\.modules\.linear\.Linear"):
        convert(pickled(tmp_path / "hidden.pkl", hidden), tmp_path / "folds.safetensors")
    assert not (tmp_path / "made").exists() and not (tmp_path / "folds.safetensors").exists()


def test_a_pickle_within_a_tensor_is_not_run(tmp_path):
    torch.save(Runs(tmp_path / "made"), tmp_path / "inner.pt")

    class Tensor:
        def __reduce__(self):
            return torch.storage._load_from_bytes, ((tmp_path / "inner.pt").read_bytes(),)

    with pytest.raises(pickle.UnpicklingError):
        convert(pickled(tmp_path / "ids.pkl", Tensor()), tmp_path / "folds.safetensors")
    assert not (tmp_path / "made").exists()


def test_other_contents_are_named(tmp_path):
    with pytest.raises(ValueError, match="a dict with folds; a dictionary with test_subsets"):
        convert(pickled(tmp_path / "ids.pkl", {"folds": 3}), tmp_path / "folds.safetensors")
    uneven = {**PUBLISHED, "dist_4_subsets": PUBLISHED["dist_4_subsets"][:1]}
    with pytest.raises(ValueError, match="test_subsets has 2 folds"):
        convert(pickled(tmp_path / "ids.pkl", uneven), tmp_path / "folds.safetensors")
    with pytest.raises(ValueError, match="safetensors only.*python -m lrvsf.evaluation.stored_folds"):
        StoredFolds(tmp_path / "ids.pkl")


def test_indices_of_the_leaderboard(tmp_path):
    path = tmp_path / "bootstrapped_indices.pt"
    torch.save(torch.tensor([[0, 3, 3], [1, 2, 0]], dtype=torch.int32), path)
    assert read_indices(path, 4).tolist() == [[0, 3, 3], [1, 2, 0]] and read_indices(path, 4).dtype == torch.int64
    with pytest.raises(IndexError, match="rows 0 to 3, but the test set has 3 products"):
        read_indices(path, 3)
    for wrong, says in [(torch.rand(2, 3), r"tensor \(2, 3\) of torch.float32"), ({"a": 1}, "a dict with a")]:
        torch.save(wrong, path)
        with pytest.raises(ValueError, match=says):
            read_indices(path, 4)
    torch.save(Runs(tmp_path / "made"), path)
    with pytest.raises(ValueError, match="holds more than tensors, so it is not loaded"):
        read_indices(path, 4)
    assert not (tmp_path / "made").exists()
