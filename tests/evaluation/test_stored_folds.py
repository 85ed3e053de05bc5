"""Published draws: what is read, what is refused, and that nothing in a pickle is ever run."""

import collections
import os
import pickle
import random
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lrvsf.evaluation.stored_folds import StoredFolds, convert, main, read_indices

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
    assert [rows.tolist() for rows in products.rows] == [[1, 2, 1], [0, 2, 2]] and products.draws == 6
    distractors = folds.distractors(4, ["6", "other", "5", "5"])  # 9 could not be had
    assert [rows.tolist() for rows in distractors.rows] == [[2, 2, 0], [0, 2, 2]]
    assert distractors.draws - sum(map(len, distractors.rows)) == 2 and distractors.draws == 8
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


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_lists_and_arrays_of_every_plain_type_are_one(tmp_path, protocol):
    if protocol == 2:  # bytes are then text that a function turns back
        with pytest.raises(ValueError, match="_codecs.encode, which is no array"):
            convert(pickled(tmp_path / "ids.pkl", PUBLISHED, 2), tmp_path / "folds.safetensors")
        return
    folds = [[7, 8, 7], [8, 9, 9]]
    forms = [folds, np.array(folds), [np.array(f, ">i4") for f in folds], np.asfortranarray(folds)]
    forms += [[np.array([str(i) for i in fold], dtype) for fold in folds] for dtype in (object, "U9", "S3", ">U2")]
    forms += [tuple(np.array(fold, object) for fold in folds), [[str(i) for i in fold] for fold in folds]]
    for form in forms:
        convert(pickled(tmp_path / "ids.pkl", {"test_subsets": form}, protocol), tmp_path / "folds.safetensors")
        rows = StoredFolds(tmp_path / "folds.safetensors").products(["9", "8", "7"]).rows
        assert [fold.tolist() for fold in rows] == [[2, 1, 2], [1, 0, 0]], form


class Calls:
    """A pickle that calls `function`, and then sets a state if one is given."""

    def __init__(self, function, *arguments, state=None):
        self.made = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.made


@pytest.mark.survives("a pickle of folds that asks for code, or for memory that it does not fill", "refused, not run")
def test_only_arrays_and_containers_are_unpickled(tmp_path):
    for number, value in enumerate([Runs(tmp_path / "made"), {"test_subsets": [Runs(tmp_path / "made")]}, os.system]):
        source = pickled(tmp_path / f"{number}.pkl", value)
        with pytest.raises(ValueError, match="asks for posix.* which is no array"):
            convert(source, tmp_path / "folds.safetensors")
    refused = {
        r"torch\.": torch.nn.Linear(1, 1),
        "collections.OrderedDict": collections.OrderedDict(a=1),
        "EMPTY_SET": {1, 2},
        "keys are neither texts nor integers": {((1, 2), 3): 4},
        "operation POP": (loop := ([],)),
        "treats a str as something else": Calls(np.ndarray, (1,), np.dtype("O"), b"AAAAAA\0\0"),
        "treats a bytes as something": Calls(np._core.numeric._frombuffer, b"AAAAAA\0\0", np.dtype("O"), (1,), "C"),
        "objects other than texts": np.array(["x", None], dtype=object),
        "array of V4": np.zeros(3, [("a", "i4")]),
        "array of M8": np.zeros(3, "M8[s]"),
        "array of fields": Calls(np.dtype, "i4", state=(3, "|", None, ("a",), {"a": (np.dtype("i8"), 90)}, 4, 1, 16)),
        "of another size": Calls(np.dtype, "U2", state=(3, "<", None, None, None, 8 * 10**8, 4, 8)),
        "items with contents for": Calls(np._core.numeric._frombuffer, b"12345678", np.dtype("i8"), (10**12,), "C"),
        "array of <U9999 with 8 bytes": Calls(np._core.numeric._frombuffer, b"12345678", np.dtype("U9999"), (1,), "C"),
        "an array without contents": Calls(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b"),
        "more than 64 bits": [2**8000],
        "more parts": [{} for _ in range(10**5 + 1)],
        "neither an integer nor a text": [np.array([1.0])],
    }
    loop[0].append(loop)
    for says, value in refused.items():
        with pytest.raises(ValueError, match=says):
            convert(pickled(tmp_path / "ids.pkl", {"test_subsets": value}), tmp_path / "folds.safetensors")
    assert not (tmp_path / "made").exists() and not (tmp_path / "folds.safetensors").exists()


def in_little_memory(tmp_path, statement):
    """Runs a statement in a process with 1 GB of address space more than its imports take."""
    code = (
        "import resource; from lrvsf.evaluation.stored_folds import *; from lrvsf.data.bounds.safe_pickle import *\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\n" + statement
    )
    return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.getcwd()})


def test_what_a_pickle_remembers_is_what_it_makes(tmp_path):
    (tmp_path / "ids.pkl").write_bytes(b"\x80\x04N" + b"\x94" * 10 + b".")
    with pytest.raises(ValueError, match="remembers more than it makes"):
        convert(tmp_path / "ids.pkl", tmp_path / "folds.safetensors")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="limits of memory are Linux's here")
def test_damaged_and_hostile_pickles_give_an_error_or_folds(tmp_path):
    """A thousand pickles: whatever they hold, the process neither dies nor needs memory that they do not fill."""
    rng = random.Random(0)
    good = [pickle.dumps(PUBLISHED, protocol) for protocol in (3, 4, 5)]
    good += [pickle.dumps({"test_subsets": [["a", "b"], np.array(["c", 1], object)]}, 4)]
    large = b"\xff\xff\xff\x7f"
    hostile = [
        b"\x80\x04X" + large + b"a.",  # a text of 2 GB
        b"\x80\x04\x8e" + large + b"\0\0\0\x01a.",  # bytes of 2**56
        b"\x80\x05\x96" + large + b"\0\0\0\0a.",  # a bytearray of 2 GB
        b"\x80\x04]r" + large + b".",  # the memo's place 2**31
        b"\x80\x04" + b"(" * 500_000 + b"l" * 10 + b".",
        b"\x80\x04" + b"]" * 50_000 + b"a" * 49_999 + b".",  # lists within one another
        b"\x80\x04)" + b"\x94\x86" * 3 + b".",
        b"\x80\x04]" + b"\x94h\x00h\x00\x86" * 200 + b".",  # doubles at each level
    ]
    for _ in range(1000):
        data = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(data))
            data[place : place + rng.choice([0, 1, 1, 4])] = rng.choice([rng.randbytes(1), large, b"R", b"b", b"h\x02"])
        hostile.append(bytes(data))
    (tmp_path / "all.pkl").write_bytes(pickle.dumps(hostile))
    done = in_little_memory(
        tmp_path,
        "import pickle; from pathlib import Path; read = 0\n"
        "for data in pickle.loads(Path('all.pkl').read_bytes()):\n"
        "    Path('one.pkl').write_bytes(data)\n"
        "    try: convert('one.pkl', 'folds.safetensors'); read += 1\n"
        "    except ValueError as error: assert 'one.pkl' in str(error), error; last = error\n"
        "assert read > 10, (read, last)\n",
    )
    assert done.returncode == 0


def test_other_contents_are_named(tmp_path):
    with pytest.raises(ValueError, match="a dict with folds; a dictionary with test_subsets"):
        convert(pickled(tmp_path / "ids.pkl", {"folds": 3}), tmp_path / "folds.safetensors")
    uneven = {**PUBLISHED, "dist_4_subsets": PUBLISHED["dist_4_subsets"][:1]}
    with pytest.raises(ValueError, match="test_subsets has 2 folds"):
        convert(pickled(tmp_path / "ids.pkl", uneven), tmp_path / "folds.safetensors")
    with pytest.raises(ValueError, match="safetensors only.*evaluate_lrvsf.py folds"):
        StoredFolds(tmp_path / "ids.pkl")


def test_indices_of_the_leaderboard(tmp_path):
    path = tmp_path / "bootstrapped_indices.pt"
    torch.save(torch.tensor([[0, 3, 3], [1, 2, 0]], dtype=torch.int32), path)
    assert read_indices(path, 4).tolist() == [[0, 3, 3], [1, 2, 0]] and read_indices(path, 4).dtype == torch.int64
    with pytest.raises(IndexError, match="rows 0 to 3, but the test set has 3 products"):
        read_indices(path, 3)
    for wrong, says in [(torch.rand(2, 3), r"tensor \(2, 3\) of float32"), ({"a": 1}, "a dict with a")]:
        torch.save(wrong, path)
        with pytest.raises(ValueError, match=says):
            read_indices(path, 4)
    refused = {
        r"tensor \(1, 3\) of bool": torch.ones(1, 3, dtype=torch.bool),
        r"of complex64": torch.ones(1, 3, dtype=torch.complex64),
        "not loaded: it asks for torch": torch.ones(1, 3, dtype=torch.uint64),
        "not loaded: it asks for torch._utils._rebuild_sparse": torch.eye(3, dtype=torch.int64).to_sparse(),
        "not a whole table": torch.zeros(1, 1, dtype=torch.int64).expand(10**5, 10**5),
        r"tensor \(3,\) of int64": torch.arange(3),
        r"tensor \(0, 3\) of int64": torch.zeros(0, 3, dtype=torch.int64),
        "a list": [1, 2],
        "not loaded: it asks for posix.mkdir": Runs(tmp_path / "made"),
    }
    for says, value in refused.items():
        torch.save(value, path)
        with pytest.raises(ValueError, match=says):
            read_indices(path, 4)
    torch.save(torch.tensor([[1]]), path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="is damaged and not loaded: BadZipFile"):
        read_indices(path, 4)
    assert not (tmp_path / "made").exists()


def test_indices_that_announce_more_than_they_have(tmp_path):
    path, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    torch.save(torch.arange(100_000).reshape(20, 5000), path)
    larger = [(b"K\x14M\x88\x13\x86", b"K\x14J\xff\xff\xff\x7f\x86"), (b"J\xa0\x86\x01\x00", b"J\xff\xff\xff\x7f")]
    for (old, new), says in zip(larger, ["not a whole table", "of the numbers that it announces"], strict=True):
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(bad, "w") as target:
            for name in source.namelist():
                data = source.read(name)
                assert not name.endswith("data.pkl") or old in data
                target.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)
        with pytest.raises(ValueError, match=says):
            read_indices(bad, 10**6)
    with zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("archive/data.pkl", bytes(2**24))
    with pytest.raises(ValueError, match="an archive that torch.save did not write"):
        read_indices(bad, 4)
