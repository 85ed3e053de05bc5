"""A catalog's vectors: mapped rows over several segments, and the exact best among them."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lrvsf.search.vectors import Selection, Vectors

DIM = 24


def drawn(count, seed=0, dim=DIM):
    """Unit rows (count, dim) as float16 holds them; a few of them twice."""
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    rows[count // 2 :: 7] = rows[: len(rows[count // 2 :: 7])].clone()
    return torch.nn.functional.normalize(rows, dim=1).half()


def exact(vectors, queries, k, allowed=None):
    """The naive twin: all scores in float64, sorted, ties by row number."""
    stored = vectors.take(np.arange(len(vectors))).astype(np.float64)
    scores = queries.astype(np.float64) @ stored.T
    if allowed is not None:
        scores[:, ~allowed.mask] = -np.inf
    # To 1e-7, as far as float32 coordinates go: equal rows tie, and the smaller number is first.
    order = np.lexsort((np.broadcast_to(np.arange(len(vectors)), scores.shape), -scores.round(7)))[:, :k]
    return np.take_along_axis(scores, order, 1), order


@pytest.fixture
def segments(tmp_path):
    rows = drawn(500)
    for segment, bounds in (("a", (0, 100, 100, 220)), ("b", (220, 500))):
        (tmp_path / segment).mkdir()
        for number, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):  # one shard is empty
            path = tmp_path / segment / f"item-{number:05d}.safetensors"
            save_file({"embeds": rows[start:stop].clone(), "row": torch.arange(stop - start)}, path)
    return [tmp_path / "a", tmp_path / "b"], rows


def test_rows_over_several_segments(segments):
    folders, rows = segments
    vectors = Vectors.open(folders)
    assert vectors.shape == (500, DIM) and len(vectors) == 500
    wanted = np.array([499, 0, 100, 99, 220, 0])
    taken = vectors.take(wanted)
    np.testing.assert_allclose(taken, rows[wanted].float(), atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(taken, axis=1), 1, atol=1e-6)
    many = np.random.default_rng(0).integers(500, size=300)  # taken by piece, fewer one by one
    np.testing.assert_array_equal(
        vectors.take(many), np.concatenate([vectors.take(many[at : at + 1]) for at in range(300)])
    )
    blocks = list(vectors.blocks(64, first_row=150))
    assert blocks[0][0] == 150 and sum(len(block) for _, block in blocks) == 350
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), vectors.take(np.arange(150, 500)))


@pytest.mark.parametrize("count, k, queries", [(1, 1, 1), (7, 10, 3), (500, 1, 5), (2049, 10, 33), (4097, 50, 2)])
def test_the_exact_best_is_what_sorting_all_gives(count, k, queries):
    vectors = Vectors(list(drawn(count).split([count // 3, count - count // 3])))
    asked = vectors.take(np.random.default_rng(1).integers(count, size=queries))
    scores, rows = vectors.best(torch.from_numpy(asked), k)
    expected_scores, expected = exact(vectors, asked, k)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-7)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_the_exact_best_of_some(share):
    vectors = Vectors([drawn(3000)])
    allowed = Selection(np.random.default_rng(2).random(3000) < share)
    asked = vectors.take(np.arange(4))
    _, rows = vectors.best(torch.from_numpy(asked), 10, allowed)
    assert rows.shape == (4, min(10, allowed.count))
    np.testing.assert_array_equal(rows, exact(vectors, asked, 10, allowed)[1][:, : rows.shape[1]])


def test_selections():
    mask = np.array([True, False, True, True, False, False, False, False, True])
    one = Selection(mask)
    assert (one.count, one.rows.tolist()) == (4, [0, 2, 3, 8])
    assert (one & Selection(~mask)).count == 0


def test_damage_and_other_kinds_are_refused(segments, tmp_path):
    folders, _ = segments
    path = folders[0] / "item-00000.safetensors"
    save_file({"embeds": torch.zeros(3, DIM), "row": torch.arange(3)}, path)
    with pytest.raises(ValueError, match="float32; .* float16 are needed"):
        Vectors.open(folders)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="is damaged"):
        Vectors.open(folders)
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="has no item-"):
        Vectors.open([tmp_path / "none"])
    with pytest.raises(IndexError, match="Rows -1 to 5"):
        Vectors([drawn(10)]).take(np.array([5, -1]))
