"""What tests are made of: drawn images, tiny models, products and shards, test sets, tars, downloads, a shop.

What needs more than torch, transformers, numpy and Pillow is imported where it is used, because the tests of the Hub
files run where only these are.
"""

import csv
import hashlib
import io
import json
import tarfile
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from configuration_condvit import CondViTConfig
from modeling_condvit import CondViTModel

# --- Images


def encode(image, form="PNG", **options):
    """The bytes of a Pillow image in a format."""
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def plain(color="white", size=(20, 30), form="PNG", **options):
    """The bytes of an image of one colour."""
    return encode(Image.new("RGB", size, color), form, **options)


def jpeg(number):
    """The bytes of a small JPEG, 8 to 10 wide and 9 high, another one for each number."""
    return plain((number % 256, number // 256 % 256, 90), (8 + number % 3, 9), "JPEG", quality=95)


def noise(width=40, height=30, seed=0):
    """A Pillow image of RGB noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def squares(seed, form="JPEG", **options):
    """The bytes of a picture of 6 x 5 coloured squares, 36 x 30 pixels: more to tell apart than plain colours have."""
    pixels = np.asarray(noise(6, 5, seed)).repeat(6, axis=0).repeat(6, axis=1)
    return encode(Image.fromarray(pixels), form, **options)


# --- Models, of 16 patches and 2 layers, the same weights at every call

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 16,
}
TEXT = {"vocab_size": 24, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}


def tiny_condvit(**config):
    """A CondViT in evaluation mode; the configuration's fields replace those of TINY."""
    torch.manual_seed(0)
    return CondViTModel(CondViTConfig(**{**TINY, **config})).eval()


def spread_out(model):
    """The model with wider weights. As drawn, all its embeddings are within a rounding or two of each other, so that
    ranks would be of rounding."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.normal_(std=0.3)  # a cosine of two pictures is then from -0.2 to 1
    if model.config.condition == "text":
        model.embed_categories()
    return model


def tiny_clip(projection_dim=16, vision=None):
    """A whole CLIP in evaluation mode, text tower and all; `vision` replaces fields of its vision tower."""
    torch.manual_seed(0)
    towers = {"text_config": {**TINY, **TEXT}, "vision_config": {**TINY, **(vision or {})}}
    return CLIPModel(CLIPConfig(**towers, projection_dim=projection_dim)).eval()


WORDS = ["<pad>", "</s>", "<unk>", "the", "red", "blue", "a", "photo", "of", "bag", "shoe"]
WORDS += ["Bags", "Feet", "Hands", "Head", "Lower", "Body", "Neck", "Outwear", "Upper", "Waist", "Whole"]


def tiny_tokenizer(**options):
    """Words by number; what is none of WORDS is unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **{**special, "model_max_length": 8, **options})


def tiny_sentence_encoder(folder, kind, pooling="mean", dense=None, normalize=True):
    """Writes a sentence-transformers model: of a "t5" or "bert", `dense` (outputs, activation) or none."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import BertConfig, BertModel, T5Config, T5EncoderModel

    torch.manual_seed(0)
    if kind == "t5":
        sizes = {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3}
        model = T5EncoderModel(T5Config(vocab_size=len(WORDS), **sizes))
    else:
        sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
        model = BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **sizes))
    model.save_pretrained(folder / "plain")
    tiny_tokenizer().save_pretrained(folder / "plain")
    parts = [modules.Transformer(str(folder / "plain"), max_seq_length=8)]
    parts.append(modules.Pooling(24, pooling_mode=pooling))
    if dense:
        parts.append(
            modules.Dense(24, dense[0], bias=dense[1] is not torch.nn.Identity, activation_function=dense[1]())
        )
    if normalize:
        parts.append(modules.Normalize())
    made = SentenceTransformer(modules=parts)
    made.save(str(folder / "sentences"))
    return made, folder / "sentences"


def write_tiny_reader(folder):
    """Writes the folder of a tiny text model, whose texts its CLIP's own tower reads; gives it. `clip` is beside it."""
    from processing_condvit import CondViTProcessor

    clip = str(folder.parent / "clip")
    tiny_clip().save_pretrained(clip)
    tiny_tokenizer().save_pretrained(clip)
    model = CondViTModel.from_clip(clip, text_encoder=clip, text_encoder_in_checkpoint=True)
    model.save_pretrained(folder)
    CondViTProcessor(size=32, tokenizer=tiny_tokenizer()).save_pretrained(folder)
    return folder


def write_teller(folder, condition):
    """Writes the folder of a tiny model of category or text that tells pictures and conditions apart; gives it."""
    from processing_condvit import CondViTProcessor

    if condition == "text":
        spread_out(CondViTModel.from_pretrained(write_tiny_reader(folder))).save_pretrained(folder)
    else:
        spread_out(tiny_condvit(condition=condition)).save_pretrained(folder)
        CondViTProcessor(size=32).save_pretrained(folder)
    return folder


def as_flags(**values):
    """The words of a command line: `as_flags(seed=3, gallery_sizes=[5, 9])` -> --seed 3 --gallery_sizes 5 9."""
    several = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    return [str(word) for name, value in several.items() for word in (f"--{name}", *value)]


# --- Files


def write_file(path, data):
    """Writes bytes, into a folder that need not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_table(path, columns, **options):
    """Writes columns, or a table, as a Parquet file; the options are those of `pyarrow.parquet.write_table`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)


def write_rows(path, rows, schema=None, **options):
    """Writes dictionaries as the rows of a Parquet file."""
    import pyarrow as pa

    write_table(path, pa.Table.from_pylist(rows, schema=schema), **options)


def rows_of(path):
    """The rows of a Parquet file, or of all that are directly in a folder, in the order of their names."""
    import pyarrow.parquet as pq

    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def edit_rows(path, change, **options):
    """Rewrites a Parquet file of the same columns after `change(rows)`."""
    import pyarrow.parquet as pq

    rows, schema = rows_of(path), pq.read_schema(path)
    change(rows)
    write_rows(path, rows, schema, **options)


def spoil_page(path, group, column=0):
    """Overwrites the head of a data page; the footer still opens. A column has a number, or a path in the schema."""
    import pyarrow.parquet as pq

    row_group = pq.ParquetFile(path).metadata.row_group(group)
    columns = map(row_group.column, range(row_group.num_columns))
    (page,) = (c.data_page_offset for i, c in enumerate(columns) if column in (i, c.path_in_schema))
    data = path.read_bytes()
    path.write_bytes(data[:page] + b"\xff" * 8 + data[page + 8 :])


# --- Products and shards of them


def row_image(data, kind, category=None, captions=()):
    """An image of a product row."""
    return {"image": {"bytes": data, "path": None}, "type": kind, "category": category, "captions": list(captions)}


def product(name, simple="white", scene="black", category="Bags", captions=()):
    """A product row of one SIMPLE image and one scene, each given as bytes or as a colour."""
    simple, scene = (data if isinstance(data, bytes) else plain(data) for data in (simple, scene))
    images = [row_image(simple, "SIMPLE", category, captions), row_image(scene, "COMPLEX", None, captions)]
    return {"product_id": name, "images": images}


def write_products(path, rows, **options):
    """Writes one shard of product rows."""
    from lrvsf.data.schema import PRODUCT_FEATURES

    write_rows(path, rows, PRODUCT_FEATURES.arrow_schema, **options)


def write_shards(folder, rows, files=3):
    """Deals product rows out to shards 0.parquet, 1.parquet, ... of row groups of 4; gives the folder."""
    for index in range(files):
        write_products(folder / f"{index}.parquet", rows[index::files], row_group_size=4)
    return folder


# --- Test sets


def write_layout(root, products, *distractors, **options):
    """Writes the layout of a test set; gives its folder.

    `products` are columns of products.parquet, where the columns that it needs are added if they are missing; each of
    `distractors` is the columns of a file.
    """
    count = len(next(iter(products.values()), [None]))
    needed = {"SIMPLE_IMG": b"s", "COMPLEX_IMG": b"c", "CATEGORY": "Bags", "blip2_caption1": "a bag"}
    write_table(
        root / "products.parquet", {name: [cell] * count for name, cell in needed.items()} | products, **options
    )
    for number, columns in enumerate(distractors):
        write_table(root / f"distractors/{number}.parquet", columns, **options)
    return root


def write_test_set(root, products=12, distractors=40, bad=None, same=False):
    """Writes a test set of coloured squares in several row groups, the distractors in two files; gives its folder.

    `bad` replaces images, {"SIMPLE_IMG": {row: bytes}, "jpg": {...}}. With `same`, a product's query is its target.
    """
    columns = {
        "SIMPLE_IMG": [squares(i, quality=95) for i in range(products)],
        "COMPLEX_IMG": [squares(i if same else 1000 + i, quality=95) for i in range(products)],
        "jpg": [squares(2000 + i, quality=95) for i in range(distractors)],
    }
    for name, rows in (bad or {}).items():
        for row, data in rows.items():
            columns[name][row] = data
    gallery = {"jpg": columns.pop("jpg"), "PRODUCT_ID": [f"d{i}" for i in range(distractors)]}
    gallery["CATEGORY"] = [("Feet", "Bags", "Hats", "Neck")[i % 4] for i in range(distractors)]
    columns["CATEGORY"] = [("Bags", "Feet", "Neck")[i % 3] for i in range(products)]
    columns["PRODUCT_ID"] = [f"p{i}" for i in range(products)]
    half = distractors // 2 + 3
    halves = [{name: cells[part] for name, cells in gallery.items()} for part in (slice(half), slice(half, None))]
    return write_layout(root, columns, *halves, row_group_size=5)


# --- Tars


def tar_of(members, mode="w"):
    """The bytes of a tar of (path, bytes)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for path, data in members:
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def tar_product(name, *images, category="Bags"):
    """The members of a product in a tar, as published: images, given as (type, bytes), and then their JSON.

    Without images it has one of each type, of bytes that are no image.
    """
    images = images or (("SIMPLE", f"simple {name}".encode()), ("COMPLEX", f"scene {name}".encode()))
    described = {
        str(i): {"TYPE": kind, "CATEGORY": category if kind == "SIMPLE" else None, "blip2_caption1": f"{name} {kind}"}
        for i, (kind, _) in enumerate(images)
    }
    members = [(f"{name}.{i}.jpg", data) for i, (_, data) in enumerate(images)]
    return [*members, (f"{name}.json", json.dumps(described).encode())]


# --- What img2dataset downloads


def download_row(product_id, kind, jpg, **cells):
    """A row of img2dataset's output; no `jpg` is a download that failed."""
    digest = None if jpg is None else hashlib.sha256(jpg).hexdigest()
    row = {
        "url": f"http://shop/{product_id}/{kind}/{(digest or 'dead')[:8]}",
        "product_id": product_id,
        "type": kind,
        "split": "train",
        "category": "Bags" if kind == "SIMPLE" else None,
        "captions": [f"{kind} of {product_id}"],
        "status": "failed_to_download" if jpg is None else "success",
        "sha256": digest,
        "jpg": jpg,
    }
    return row | cells


def write_download(path, rows):
    """Writes a file of img2dataset's, in row groups of 3."""
    import pyarrow as pa

    texts = ("url", "product_id", "type", "split", "category", "status", "sha256")
    further = [("captions", pa.list_(pa.string())), ("jpg", pa.binary()), ("metadata_row", pa.int64())]
    write_rows(path, rows, pa.schema([*((name, pa.string()) for name in texts), *further]), row_group_size=3)


# --- Catalogs

COLUMNS = ("product_id", "image", "role", "category", "text")


def write_csv(path, rows, columns=COLUMNS):
    """Writes a catalog's table; gives its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def write_catalog(path, rows, columns=COLUMNS):
    """Writes a catalog's table and draws the pictures that its rows name, each another one; gives the table's path."""
    for number, name in enumerate(dict.fromkeys(row[1] for row in rows)):
        write_file(path.parent / name, jpeg(number))
    return write_csv(path, rows, columns)


def write_shop(folder):
    """40 whole products p0..p39 in two categories, and l0..l9 without a scene, each image another one: the table."""
    rows = []
    for i in range(50):
        name, category = f"p{i}" if i < 40 else f"l{i - 40}", "Hand bags" if i % 2 else "Men's shoes"
        write_file(folder / f"images/{name}.jpg", jpeg(2 * i))
        rows.append((name, f"images/{name}.jpg", "product", category, f"the {name}"))
        if i < 40:
            write_file(folder / f"images/{name} worn.jpg", jpeg(2 * i + 1))
            rows.append((name, f"images/{name} worn.jpg", "scene", "", ""))
    return write_csv(folder / "products.csv", rows)


def measured_products(rows, categories, ids=None):
    """What a table of queries asks of an embedded test set."""
    return SimpleNamespace(rows=rows, category_names=categories, product_ids=ids or [None] * len(rows))
