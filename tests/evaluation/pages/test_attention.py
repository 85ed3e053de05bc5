"""Attention rollout against a walk over all paths and a case by hand; the maps and the picture on a tiny model."""

import itertools

import numpy as np
import pytest
import torch
from made import as_flags, encode, noise
from PIL import Image

import evaluate_lrvsf
from lrvsf.data.images import decode_image
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.rollout import attention_maps, attention_rollout, draw_heat, eager_attention, patch_maps
from lrvsf.evaluation.pages.attention import write_attention


def test_two_layers_by_hand():
    """Two tokens, two heads. With half of the identity the layers are [[7, 1], [4, 4]] / 8 and [[4, 4], [2, 6]] / 8."""
    first = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]], [[0.5, 0.5], [1.0, 0.0]]]])  # mean [[3, 1], [4, 0]] / 4
    second = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]])
    expected = torch.tensor([[[44.0, 20.0], [38.0, 26.0]]]) / 64  # second @ first
    assert torch.equal(attention_rollout([first, second]), expected)


@pytest.mark.parametrize("layers", [1, 3])
def test_rollout_equals_the_sum_over_all_paths(layers):
    """The twin: every path from an output token through the layers to an input token, with its weights multiplied."""
    noise = torch.randn(layers, 2, 3, 4, 4, generator=torch.Generator().manual_seed(layers))  # B = 2, 3 heads, T = 4
    attentions = noise.softmax(-1)
    rollout = attention_rollout(attentions.unbind())
    for image, i, j in itertools.product(range(2), range(4), range(4)):
        total = 0.0
        for path in itertools.product(range(4), repeat=layers - 1):
            tokens, weight = (j, *path, i), 1.0  # from the input upwards
            for layer, (below, above) in enumerate(itertools.pairwise(tokens)):
                heads = [attentions[layer, image, head, above, below].item() for head in range(3)]
                weight *= (sum(heads) / 3 + (above == below)) / 2
            total += weight
        assert rollout[image, i, j].item() == pytest.approx(total, abs=1e-6)
    torch.testing.assert_close(rollout.sum(-1), torch.ones(2, 4))


def test_no_layer_is_refused():
    with pytest.raises(ValueError, match="eager attention and output_attentions"):
        attention_rollout(())


def test_patch_maps_by_hand():
    """[CLS], 4 patches and 2 condition tokens, under two conditions."""
    rollout = torch.zeros(2, 7, 7)
    rollout[0, 0] = torch.tensor([9.0, 1, 2, 3, 4, 9, 9])
    rollout[1, 0] = torch.tensor([9.0, 3, 2, 1, 0, 9, 9])
    rollout[0, 5] = torch.tensor([9.0, 0, 2, 4, 6, 9, 9])
    rollout[0, 6] = torch.tensor([9.0, 2, 2, 2, 2, 9, 9])
    maps = patch_maps(rollout, 2)
    assert maps[0].tolist() == [[[1, 2], [3, 4]], [[0, 0], [1, 2]], [[1, 2], [3, 4]]]
    assert maps[1].tolist() == [[[3, 2], [1, 0]], [[1, 0], [0, 0]], [[0, 0], [0, 0]]]
    with pytest.raises(ValueError, match="5 tokens hold no condition"):
        patch_maps(torch.eye(5)[None], 2)


def test_maps_of_a_model_are_of_its_own_weights_and_leave_it_as_it_was(make_model):
    model = make_model(num_condition_tokens=2)
    encoder = Encoder(model, "category")
    before = model.config._attn_implementation
    assert before != "eager"  # or the test would not see that it is put back
    maps = attention_maps(encoder, decode_image(encode(noise(50, 32))), model.config.categories)
    assert maps.shape == (10, 3, 4, 4) and maps.min() >= 0
    assert (maps[:, [0, 2]].sum((2, 3)) < 1).all()  # the rest flows from [CLS] and the condition
    assert not torch.allclose(maps[0, 2], maps[1, 2])
    assert model.config._attn_implementation == before


def test_a_frozen_gallery_hands_out_its_attention_too(tiny_model, pixel_values):
    model = tiny_model.with_frozen_gallery()
    with eager_attention(model):  # without a condition, the gallery embeds
        assert len(model(pixel_values, output_attentions=True).attentions) == model.config.num_hidden_layers
    assert model.gallery.config._attn_implementation == model.config._attn_implementation == "sdpa"


def test_heat_reddens_the_hottest_patch_only():
    """A grey picture stays grey where the map is smallest, and turns red in the corner where it is largest."""
    heat = torch.zeros(4, 4)
    heat[0, 3] = 0.01  # only the place of the largest value counts, not its size
    drawn = np.asarray(draw_heat(Image.new("RGB", (40, 40), (128, 128, 128)), heat)).astype(int)
    red, green, blue = drawn[4, 36]
    assert red > 2 * green and red > 1.5 * blue
    assert drawn[36, 4].tolist() == [drawn[36, 4, 0]] * 3


@pytest.fixture
def encoder(tiny_model):
    return Encoder(tiny_model, "category")


def test_the_picture(encoder, make_test_set, tmp_path):
    """One block for each query, one column for each category; the query's own category is framed on its three lines."""
    test_set = ProductTestSet(make_test_set())
    write_attention(encoder, test_set, [0, 4], ["Feet", "Bags"], tmp_path / "new" / "a.png")
    sheet = np.asarray(Image.open(tmp_path / "new" / "a.png"))
    assert sheet.shape == (2 * 24 + 2 * (3 * 128 + 8), 3 * 8 + 3 * 128 + 120 + 2 * 128, 3)
    framed = (sheet == (30, 140, 60)).all(-1)
    left = 3 * 8 + 3 * 128 + 120
    where = {(int(y) // 392, int(x) // 128) for y, x in zip(*framed[24:, left:].nonzero(), strict=True)}
    assert where == {(0, 1), (1, 0)}  # row 0 is of "Bags", row 4 of "Feet"
    assert framed.sum() == 6 * (120**2 - 114**2)


def test_refusals(encoder, tiny_model, make_test_set, tmp_path):
    test_set = ProductTestSet(make_test_set())
    for rows, categories, says in (
        ([0, 12], None, "no query 12: the test set has rows 0 to 11"),
        ([-1], None, "no query -1"),
        ([0], ["Bags", "Bag"], "Unknown category 'Bag'"),
    ):
        with pytest.raises(ValueError, match=says):
            write_attention(encoder, test_set, rows, categories, tmp_path / "a.png")
    with pytest.raises(ValueError, match="runs with conditioning='none'"):
        write_attention(Encoder(tiny_model, "none"), test_set, [0], None, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_the_script_s_flags(tiny_model, make_test_set, tmp_path, capsys):
    tiny_model.save_pretrained(tmp_path / "model")
    places = {"model": tmp_path / "model", "data_root": make_test_set(), "output_dir": tmp_path / "out"}
    asked = {"attention": 3, "attention_categories": "Upper Body"}
    evaluate_lrvsf.main(as_flags(**places, gallery_sizes=9, folds=2, **asked))
    assert Image.open(tmp_path / "out" / "attention.png").size == (3 * 8 + 3 * 128 + 120 + 128, 2 * 24 + 3 * 128 + 8)
    assert f"Wrote {tmp_path / 'out' / 'attention.png'}." in capsys.readouterr().out
    assert (tmp_path / "out" / "results.json").exists()
