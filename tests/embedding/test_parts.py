"""Rows that are no test set's, embedded by the same pipeline and kept in the same store."""

import json

import pytest
import torch
from made import plain

from lrvsf.data.images import Tolerance, decode_image
from lrvsf.data.testset import Origin
from lrvsf.embedding import store as store_module
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.parts import Decoded, Part
from lrvsf.embedding.store import EmbeddingStore


def encoded(row):
    return plain((9 * row, 90, 30), (20 + row, 10))


class Photos(Part):
    """Twenty pictures in memory, of which row 3 is none; a list of their sizes is kept beside each shard."""

    what, kinds, total, beside = "photos", ("photo",), 20, ".json"

    def items(self, start, stop):
        yield from ((row, b"" if row == 3 else encoded(row)) for row in range(start, stop))

    def decode(self, encoder, images):
        image = decode_image(images)
        return Decoded([encoder.pixels_of(image)], image.size)

    def origins(self, start, stop):
        yield from (Origin(None, f"{row}.png", 0) for row in range(start, stop))

    def describe(self):
        return "twenty pictures"

    def pack(self, rows, extras):
        return json.dumps(dict(zip(rows, extras, strict=True))).encode()


def test_any_rows_can_be_stored_and_something_beside_them(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "ROWS", 8)
    encoder = Encoder(tiny_model, "none")
    options = {"batch_size": 3, "tolerance": Tolerance(0.5), "remedy": "name another catalog"}
    store = EmbeddingStore(tmp_path / "photos", encoder, [Photos()], "nowhere", **options)
    store.fill()
    everything = {path: path.read_bytes() for path in store.folder.iterdir()}
    assert [path.name for path in store.beside("photos")] == [f"photos-0000{shard}.json" for shard in range(3)]
    first = json.loads(store.beside("photos")[0].read_text())
    assert first == {str(row): [20 + row, 10] for row in range(8) if row != 3} and store.bad("photos") == [(3, "empty")]
    expected = encoder.embed([encoder.pixels(encoded(row)) for row in range(20) if row != 3])
    torch.testing.assert_close(store.whole("photo"), expected, rtol=2**-10, atol=1e-6)
    store.beside("photos")[2].unlink()
    EmbeddingStore(store.folder, encoder, [Photos()], "nowhere", **options).fill()
    assert {path: path.read_bytes() for path in store.folder.iterdir()} == everything
    with pytest.raises(ValueError, match="embedding_dim: .*\n.*, name another catalog, or remove this folder"):
        EmbeddingStore(store.folder, Encoder(tiny_model, "none", dims=5), [Photos()], "", **options).fill()
