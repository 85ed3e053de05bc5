"""Product rows and shards made in the tests."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lrvsf.data.schema import PRODUCT_FEATURES


def encoded(color, size=(20, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def image(data, kind, category=None):
    return {"image": {"bytes": data, "path": None}, "type": kind, "category": category, "captions": []}


def product(name, simple="white", scene="black", category="Bags"):
    scene = scene if isinstance(scene, bytes) else encoded(scene)
    return {"product_id": name, "images": [image(encoded(simple), "SIMPLE", category), image(scene, "COMPLEX")]}


def write(folder, rows, files=3):
    folder.mkdir(exist_ok=True, parents=True)
    for index in range(files):
        table = pa.Table.from_pylist(rows[index::files], schema=PRODUCT_FEATURES.arrow_schema)
        pq.write_table(table, folder / f"{index}.parquet", row_group_size=4)
    return folder
