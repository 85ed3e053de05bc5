"""The caption store gives what a dictionary would, whatever was added when, and whoever died meanwhile."""

import pickle
import random

import numpy as np
import pytest
import torch
from made import tiny_clip, tiny_tokenizer

from lrvsf.data.wording import text_hash
from lrvsf.durable import InUse
from lrvsf.embedding import captions
from lrvsf.embedding.captions import CaptionStore, encoder_digest, sentence_embedder
from text_condvit import CondViTTextEncoder

DIM = 6


def row_of(text):
    """Six numbers that float16 holds, of a text."""
    return [((text_hash(text) >> 8 * place) & 255) / 4 for place in range(DIM)]


class Counted:
    """A fake encoder that remembers what it was asked."""

    def __init__(self):
        self.texts = []

    def __call__(self, texts):
        self.texts += texts
        return torch.tensor([row_of(text) for text in texts])


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(captions, "PART", 10)
    monkeypatch.setattr(captions, "AT_ONCE", 4)


def fill(folder, texts):
    """Adds texts to the store of a folder; what was embedded for it."""
    embed = Counted()
    assert sum(CaptionStore(folder, DIM).add(texts, embed)) == len(embed.texts)
    return embed.texts


def some(count, first=0):
    return [f"a {'very ' * (number % 5)}red bag, number {number}" for number in range(first, first + count)]


def test_rows_are_those_of_a_dictionary(tmp_path, small_parts):
    texts = some(47)
    random.Random(0).shuffle(texts)
    assert sorted(fill(tmp_path, [*texts, *texts[:20]])) == sorted(texts), "each once"
    store = CaptionStore(tmp_path, DIM)
    assert len(store) == 47 and len(store.parts) == 5
    expected = {text: row_of(text) for text in texts}
    asked = [*texts[::3], *texts[:5]]
    assert store.of_texts(asked).tolist() == [expected[text] for text in asked]
    assert store.of_texts([]).shape == (0, DIM) and store.of_texts(asked).dtype == torch.float32
    assert store.has(np.array([text_hash("another"), text_hash(texts[0])], np.uint64)).tolist() == [False, True]
    with pytest.raises(KeyError, match="1 of 2 texts are not in .*--caption_store"):
        store.of_texts([texts[0], "another"])


def test_new_texts_only_add(tmp_path, small_parts):
    fill(tmp_path, some(12))
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert fill(tmp_path, some(12)) == []
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert sorted(fill(tmp_path, some(15))) == sorted(some(3, 12))
    assert files.items() <= {path: path.read_bytes() for path in tmp_path.iterdir()}.items()
    assert len(CaptionStore(tmp_path, DIM)) == 15


@pytest.mark.survives("a computation of captions' embeddings is killed", "the next run embeds what is missing")
def test_a_killed_computation_goes_on(tmp_path, small_parts):
    work = CaptionStore(tmp_path, DIM).add(some(35), embed := Counted())
    assert next(work) + next(work) == 20
    work.close()
    (tmp_path / "00002.rows.npy").write_bytes(b"half of the ro")  # killed before its hashes came
    assert len(CaptionStore(tmp_path, DIM)) == 20
    rest = fill(tmp_path, some(35))
    assert len(rest) == 15 and sorted(rest + embed.texts) == sorted(some(35))
    assert CaptionStore(tmp_path, DIM).of_texts(some(35)).tolist() == [row_of(text) for text in some(35)]


def test_batches_hold_texts_of_one_length(tmp_path, small_parts):
    embed = Counted()
    list(CaptionStore(tmp_path, DIM).add(some(10), embed))
    lengths = [len(text) for text in embed.texts]
    assert lengths == sorted(lengths)


def test_one_run_at_a_time_adds_and_all_may_read(tmp_path, locked_elsewhere):
    fill(tmp_path, some(3))
    with locked_elsewhere(tmp_path):
        assert fill(tmp_path, some(3)) == []
        with pytest.raises(InUse, match="is in use by a rehearsal"):
            fill(tmp_path, some(4))


def test_a_loading_process_gets_the_folder_not_the_rows(tmp_path):
    fill(tmp_path, some(500))
    store = CaptionStore(tmp_path, DIM)
    sent = pickle.dumps(store)
    assert len(sent) < 500
    assert torch.equal(pickle.loads(sent).of_texts(some(500)), store.of_texts(some(500)))


def test_damage_and_numbers_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'a red bag, number 0' is not finite in float16"):
        list(CaptionStore(tmp_path, DIM).add(some(1), lambda texts: torch.full((len(texts), DIM), 1e6)))
    fill(tmp_path, some(9))
    with pytest.raises(ValueError, match=r"rows of shape \(9, 6\), float16, for 9 texts\). Remove"):
        CaptionStore(tmp_path, 7)
    path = tmp_path / "00000.rows.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"damaged .*Remove .*; the next run makes it again"):
        CaptionStore(tmp_path, DIM)


def test_another_encoder_or_tokenizer_has_a_store_of_its_own(tmp_path):
    tiny_clip().save_pretrained(tmp_path / "clip")
    tiny_clip(projection_dim=8).save_pretrained(tmp_path / "other")
    encoder, other = (CondViTTextEncoder.from_pretrained(str(tmp_path / name)) for name in ("clip", "other"))
    tokenizer = tiny_tokenizer()
    digest = encoder_digest(encoder, tokenizer)
    embedded = sentence_embedder(encoder, tokenizer, torch.device("cpu"))(["the red bag", "a shoe"])
    assert embedded.shape == (2, 16)
    assert encoder_digest(encoder, tokenizer) == digest, "padding is a call's"
    others = {
        encoder_digest(other, tokenizer),
        encoder_digest(encoder, tiny_tokenizer(model_max_length=7)),
        encoder_digest(encoder, tiny_tokenizer(unk_token="a")),
    }
    assert len(others | {digest}) == 4
