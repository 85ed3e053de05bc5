"""What was made of a catalog."""

import hashlib

from made import rows_of


def place(name):
    """Worked out apart: the leading bits of a hash keyed by the seed 0, as a fraction."""
    return int(hashlib.blake2b(name.encode(), digest_size=8, key=b"0").hexdigest(), 16) / 16**16


def shards_of(out):
    """The images of each product to train on, by its id."""
    return {row["product_id"]: row["images"] for row in rows_of(out / "train")}


def queries_of(out, name):
    """The queries of a test set, by product id."""
    return {row["PRODUCT_ID"]: row for row in rows_of(out / name / "products.parquet")}


def distractors_of(out, name):
    """The distractors of a test set."""
    return rows_of(out / name / "distractors")


def same_parquet(one, other):
    """Whether two folders have the same Parquet files, to the byte."""
    names = sorted(path.relative_to(one) for path in one.rglob("*.parquet"))
    assert names == sorted(path.relative_to(other) for path in other.rglob("*.parquet"))
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
