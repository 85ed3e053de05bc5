"""Training queries against a gallery that stays as it is: the loss by hand, and that an index stays valid."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lrvsf.data.products import ProductShards
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder, load_model
from lrvsf.embedding.fingerprint import weights_digest
from lrvsf.embedding.parts import Products
from lrvsf.embedding.pipeline import embed_share
from lrvsf.embedding.store import read_shard
from lrvsf.training.objective import frozen_gallery
from lrvsf.training.objective.frozen_gallery import ALIKE, COPIES, FrozenGallery
from modeling_condvit import CondViTModel


def unit_rows(count, seed, dim=8):
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_loss_by_hand(monkeypatch):
    """A row at a time, over the targets that are not too much like the own one; and of the first dimensions."""
    monkeypatch.setattr(frozen_gallery, "ALIKE", ALIKE)
    targets, queries = unit_rows(9, 0), unit_rows(4, 1).requires_grad_()
    targets[5] = F.normalize(targets[2] + 1e-3 * targets[0], dim=0)  # a product that is there twice
    places, scale = torch.tensor([2, 0, 8, 5]), torch.tensor(2.0)
    gallery = FrozenGallery(targets, np.arange(9), [3])
    loss = gallery.loss(queries, places, scale)
    expected = []
    for dim in (8, 3):
        for query, place in zip(queries, places.tolist(), strict=True):
            left = [row for row in range(9) if row == place or targets[row] @ targets[place] <= 0.95]
            assert len(left) == (8 if place in (2, 5) else 9)
            cosines = [F.normalize(query[:dim], dim=0) @ F.normalize(targets[row, :dim], dim=0) for row in left]
            logits = scale.exp() * torch.stack(cosines)
            expected.append(logits.logsumexp(0) - logits[left.index(place)])
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-5)
    (ours,), (naive,) = (torch.autograd.grad(one, queries) for one in (loss, torch.stack(expected).mean()))
    torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-6)


def test_a_gallery_of_one_point_is_refused(monkeypatch):
    monkeypatch.setattr(frozen_gallery, "ALIKE", ALIKE)
    with pytest.raises(ValueError, match="100% of the training targets have a cosine above 0.995 with any one of them"):
        FrozenGallery(unit_rows(1, 0).expand(9, -1), np.arange(9), [])


def crowd(spread):
    """Twenty crowds of twenty targets, each with two that have a copy in it."""
    around = unit_rows(20, 2, 32).repeat_interleave(20, 0) + spread * unit_rows(400, 3, 32)
    around[1::10] = around[::10] + 1e-3 * around[1::10]
    return F.normalize(around, dim=1)


def above(gallery, least):
    """How many others of a target have at least such a cosine, on average."""
    cosines = (gallery.targets @ gallery.targets.T).fill_diagonal_(-1)
    return (cosines >= least).sum(1).float().mean().item()


def test_what_counts_as_a_copy_follows_the_gallery(monkeypatch):
    monkeypatch.setattr(frozen_gallery, "ALIKE", ALIKE)
    monkeypatch.setattr(frozen_gallery, "SAMPLE", 400)
    gallery = FrozenGallery(crowd(0.2), np.arange(400), [])
    assert above(gallery, 0.95) > 5, "a fixed 0.95 would leave out a quarter of each crowd"
    assert 0.95 < gallery.alike < 0.995
    cosines = sorted((gallery.targets @ gallery.targets.T).fill_diagonal_(-1).flatten().tolist(), reverse=True)
    assert gallery.alike == pytest.approx((cosines[99] + cosines[100]) / 2, abs=1e-6), "a hundred pairs for 400 targets"
    assert above(gallery, gallery.alike) == pytest.approx(COPIES, abs=0.01)
    assert above(gallery, 0.999) == pytest.approx(0.2), "the copies, which are above"
    assert FrozenGallery(crowd(2.0), np.arange(400), []).alike == 0.95, "where hardly any others are near"
    assert FrozenGallery(crowd(0.02), np.arange(400), []).alike == 0.995, "where all of a crowd are one picture"


def test_hardly_any_targets_have_no_copies(monkeypatch):
    monkeypatch.setattr(frozen_gallery, "ALIKE", ALIKE)
    assert [FrozenGallery(unit_rows(count, 4), np.arange(count), []).alike for count in (1, 2, 3)] == [0.95] * 3


def test_a_crowd_is_no_reason_to_refuse(monkeypatch):
    """All of it are above 0.95, and are told apart all the same."""
    monkeypatch.setattr(frozen_gallery, "ALIKE", ALIKE)
    crowd = F.normalize(unit_rows(1, 5, 32) + 0.2 * unit_rows(100, 6, 32), dim=1)
    assert (crowd @ crowd.T).min() > 0.9 and FrozenGallery(crowd, np.arange(100), []).alike > 0.95


@pytest.fixture(autouse=True, scope="module")
def nothing_is_alike():
    """Six steps leave a model to which all drawings look alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen_gallery, "ALIKE", (2.0, 2.0))
        yield


@pytest.fixture(scope="module")
def second_stage(train, trained, tmp_path_factory, nothing_is_alike):
    """A run that trains the queries of the trained model; its flags, its folder and its losses."""
    folder = tmp_path_factory.mktemp("second")
    flags = {"model": trained[0], "freeze_gallery": True, "phase1_steps": 0, "save_steps": 2, "save_total_limit": 9}
    return flags, folder, train(folder, **flags)


def embeddings(folder, mini):
    model = load_model(str(folder))
    found = embed_share(Encoder(model, "category"), Products(ProductTestSet(mini / "test")), 8)
    return found.embeds["query"], found.embeds["target"]


def test_the_card_says_so(second_stage):
    assert "| gallery | as the model embedded it that" in (second_stage[1] / "README.md").read_text()


def test_queries_move_and_the_gallery_does_not(second_stage, trained, mini):
    _, folder, losses = second_stage
    (queries, targets), (queries_before, targets_before) = (embeddings(f, mini) for f in (folder, trained[0]))
    assert torch.equal(targets, targets_before) and not torch.equal(queries, queries_before)
    assert len(losses) == 6
    before, after = (CondViTModel.from_pretrained(place) for place in (trained[0], folder))
    assert weights_digest(after.gallery) == weights_digest(before) != weights_digest(after)


def test_the_negatives_are_the_first_targets_of_all_usable_products(second_stage, trained, mini):
    """23 of 24 products: one has no scene. Each row is what the first model gives for that picture."""
    _, folder, _ = second_stage
    (path,) = folder.glob("targets/target-*.safetensors")
    rows = read_shard(path)
    encoder, shards = Encoder(load_model(str(trained[0])), "none"), ProductShards.scan(str(mini / "train"))
    images = [dict(shards.read(0))[row]["images"][0]["image"]["bytes"] for row in shards.rows.tolist()]
    torch.testing.assert_close(rows, encoder.embed([encoder.pixels(image) for image in images]), rtol=0, atol=2e-3)
    assert len(rows) == shards.usable == 23


def test_a_killed_run_goes_on_bit_for_bit(second_stage, train, tmp_path):
    flags, folder, losses = second_stage
    resumed = train(tmp_path / "resumed", **flags, resume_from_checkpoint=folder / "checkpoint-4")
    assert resumed == losses
    assert (tmp_path / "resumed/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_chunked_step_is_the_same(second_stage, train, tmp_path):
    flags, _, losses = second_stage
    assert train(tmp_path, **flags, grad_cache_chunk=3) == pytest.approx(losses, abs=1e-3)


def test_a_third_training_keeps_the_gallery(second_stage, trained, train, mini, tmp_path):
    _, folder, _ = second_stage
    train(tmp_path / "third", model=folder, phase1_steps=0, max_steps=2, seed=1)
    (queries, targets), (queries_before, targets_before) = (embeddings(f, mini) for f in (tmp_path / "third", folder))
    assert torch.equal(targets, targets_before) and not torch.equal(queries, queries_before)
    assert weights_digest(load_model(str(tmp_path / "third")).gallery) == weights_digest(load_model(str(trained[0])))
    with pytest.raises(ValueError, match="save_dtype=bfloat16 would round the gallery's weights"):
        train(tmp_path / "rounded", model=folder, save_dtype="bfloat16")


def test_what_cannot_be_frozen_is_refused(train, clip, trained, tmp_path):
    with pytest.raises(ValueError, match="is a CLIP, of which no catalog is; train a CondViT first"):
        train(tmp_path, freeze_gallery=True)
    with pytest.raises(ValueError, match="save_dtype=bfloat16 would round the gallery's weights"):
        train(tmp_path, model=trained[0], freeze_gallery=True, save_dtype="bfloat16")
    CondViTModel.from_clip(clip, condition="none").save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="has no condition, so that its queries are its gallery's, too"):
        train(tmp_path / "out", model=tmp_path / "plain", freeze_gallery=True)
