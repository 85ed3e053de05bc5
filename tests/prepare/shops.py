"""Catalogs as users have them, and what was made of them."""

import csv
import hashlib

import pyarrow.parquet as pq

COLUMNS = ("product_id", "image", "role", "category", "text")


def write_csv(path, rows, columns=COLUMNS):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def write_image(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def make_shop(tmp_path, encoded):
    """40 whole products p0..p39 in two categories; l0..l9 without a scene. Each image is another one."""
    rows = []
    for i in range(50):
        name = f"p{i}" if i < 40 else f"l{i - 40}"
        category = "Hand bags" if i % 2 else "Men's shoes"
        write_image(tmp_path / f"shop/images/{name}.jpg", encoded(2 * i))
        rows.append((name, f"images/{name}.jpg", "product", category, f"the {name}"))
        if i < 40:
            write_image(tmp_path / f"shop/images/{name} worn.jpg", encoded(2 * i + 1))
            rows.append((name, f"images/{name} worn.jpg", "scene", "", ""))
    return write_csv(tmp_path / "shop/products.csv", rows)


def place(name):
    """Worked out apart: the leading bits of a hash keyed by the seed 0, as a fraction."""
    return int(hashlib.blake2b(name.encode(), digest_size=8, key=b"0").hexdigest(), 16) / 16**16


def shards_of(out):
    rows = [row for path in sorted((out / "train").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {row["product_id"]: row["images"] for row in rows}


def queries_of(out, name):
    return {row["PRODUCT_ID"]: row for row in pq.read_table(out / name / "products.parquet").to_pylist()}


def distractors_of(out, name):
    files = sorted((out / name / "distractors").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def same_parquet(one, other):
    names = sorted(path.relative_to(one) for path in one.rglob("*.parquet"))
    assert names == sorted(path.relative_to(other) for path in other.rglob("*.parquet"))
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
