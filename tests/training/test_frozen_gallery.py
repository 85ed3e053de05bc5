"""Training queries against a gallery that stays as it is: the loss by hand, and that an index stays valid."""

import numpy as np
import pytest
import torch
from made import edit_rows, encode, noise, product, row_image, write_shards
from torch.nn import functional as F

from lrvsf.data.products import ProductShards
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding import store
from lrvsf.embedding.encoder import Encoder, load_model
from lrvsf.embedding.fingerprint import weights_digest
from lrvsf.embedding.parts import Products
from lrvsf.embedding.pipeline import embed_share
from lrvsf.embedding.store import read_shard
from lrvsf.training.arguments import CondViTTrainingArguments
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


def test_targets_of_one_thing_are_no_negatives(monkeypatch):
    """The loss is that of a gallery without them."""
    monkeypatch.setattr(frozen_gallery, "ALIKE", (2.0, 2.0))
    monkeypatch.setattr(frozen_gallery, "TOO_ALIKE", 1)
    targets, queries, scale = unit_rows(9, 0), unit_rows(2, 1), torch.tensor(2.0)
    things = torch.tensor([0, 1, 1, 3, 1, 5, 6, 7, 6])
    loss = FrozenGallery(targets, np.arange(9), [3], things).loss(queries, torch.tensor([2, 3]), scale)
    first = FrozenGallery(targets[[0, 2, 3, 5, 6, 7, 8]], np.arange(7), [3]).loss(queries[:1], torch.tensor([1]), scale)
    second = FrozenGallery(targets, np.arange(9), [3]).loss(queries[1:], torch.tensor([3]), scale)
    assert loss.item() == pytest.approx((first + second).item() / 2, abs=1e-6)


@pytest.fixture
def embedded(tiny_model, tmp_path):
    """embedded(rows): the gallery of product rows in shards of their own, and each product's place by its id."""
    model = tiny_model.with_frozen_gallery()

    def of(rows, out="out", files=2):
        write_shards(tmp_path / "train", rows, files)
        shards = ProductShards.scan(str(tmp_path / "train"), model.config.categories)
        flags = {"use_cpu": True, "report_to": "none", "bf16": False, "output_dir": str(tmp_path / out)}
        gallery = FrozenGallery.embedded(model, CondViTTrainingArguments(**flags), shards, [])
        read = [row for group in range(len(shards.row_groups)) for row in shards.read(group)]
        return gallery, {row["product_id"]: int(gallery.places[number]) for number, row in read}

    return of


def test_products_that_hang_together_by_pictures_are_one_thing(embedded, monkeypatch):
    monkeypatch.setattr(frozen_gallery, "TOO_ALIKE", 1)
    scene, photos = encode(noise(seed=99)), [encode(noise(seed=number)) for number in range(7)]
    rows = [product("p0", photos[0], scene), product("p1", photos[1], scene), product("p2", photos[2], scene, "Feet")]
    rows += [product("p3", photos[3], encode(noise(seed=50))), product("p4", b"torn", encode(noise(seed=51)))]
    rows += [product("p5", photos[5], encode(noise(seed=52))), product("p6", photos[6], encode(noise(seed=53)), "Feet")]
    rows[3]["images"].append(row_image(photos[0], "SIMPLE", "Bags"))  # p0's photo, second
    rows[6]["images"].append(row_image(photos[5], "SIMPLE", "Feet"))  # p5's, filed under another category
    gallery, places = embedded(rows)
    assert places.pop("p4") == -1 and len(gallery.targets) == 6
    things = {name: gallery.things[place].item() for name, place in places.items()}
    assert things["p0"] == things["p1"] == things["p3"] and things["p5"] == things["p6"]
    assert len(set(things.values())) == 3, "p2 is asked for by another category"


def test_several_shards_and_one_of_which_nothing_can_be_read(embedded, monkeypatch):
    """Shards of two rows; the fifth product's picture is torn."""
    monkeypatch.setattr(store, "ROWS", 2)
    monkeypatch.setattr(frozen_gallery, "TOO_ALIKE", 1)
    photos = [encode(noise(seed=number)) for number in range(4)]
    rows = [product(f"p{n}", photo, encode(noise(seed=50 + n))) for n, photo in enumerate([*photos, b"torn"])]
    rows[3]["images"].append(row_image(photos[0], "SIMPLE", "Bags"))
    gallery, places = embedded(rows, files=1)
    assert places == {"p0": 0, "p1": 1, "p2": 2, "p3": 3, "p4": -1} and gallery.things.tolist() == [0, 1, 2, 0]


def test_one_picture_for_many_products_is_refused(embedded):
    """Such as one that stands for a missing photo: they would have no negatives."""
    missing = encode(noise(seed=99))
    rows = [product(f"p{n}", encode(noise(seed=n)), encode(noise(seed=50 + n))) for n in range(20)]
    for row in rows[:2]:
        row["images"].append(row_image(missing, "SIMPLE", "Bags"))
    assert embedded(rows)[0].told().startswith("a frozen gallery of 20 targets, 2 of products that share pictures")
    rows[2]["images"].append(row_image(missing, "SIMPLE", "Bags"))
    rows = [{**row, "product_id": f"q{n}"} for n, row in enumerate(rows)]
    with pytest.raises(ValueError, match="3 of 20 products hang together by shared pictures(?s:.*)missing photo"):
        embedded(rows, "other")


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_bytes(b"torn"), lambda path: edit_rows(path, lambda r: r.pop())]
)
def test_damaged_numbers_of_pictures_are_told(embedded, tmp_path, spoil):
    rows = [product(f"p{n}", encode(noise(seed=n)), encode(noise(seed=50 + n))) for n in range(4)]
    embedded(rows)
    spoil(tmp_path / "out/targets/training targets-00000.parquet")
    with pytest.raises(ValueError, match="targets is damaged .*; remove it, and it is made again"):
        embedded(rows)


def test_without_shared_pictures_there_is_nothing_to_leave_out(embedded):
    rows = [product(f"p{n}", encode(noise(seed=n)), encode(noise(seed=50 + n))) for n in range(4)]
    assert embedded(rows)[0].things is None


def test_targets_of_pictures_that_were_exchanged_are_refused(embedded):
    rows = [product(f"p{n}", encode(noise(seed=n)), encode(noise(seed=50 + n))) for n in range(4)]
    first, _ = embedded(rows)
    again, _ = embedded(rows)
    assert torch.equal(first.targets, again.targets)
    rows[2] = product("p2", encode(noise(60, 50, seed=9)), encode(noise(seed=52)))
    with pytest.raises(ValueError, match="of other data:(?s:.*)give another --output_dir, or remove this folder"):
        embedded(rows)


@pytest.fixture(autouse=True, scope="module")
def nearly_all_are_alike():
    """Six steps leave a model to which all drawings look alike: what counts as a copy are the few that are most so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen_gallery, "ALIKE", (0.95, 1.0))
        yield


@pytest.fixture(scope="module")
def second_stage(train, trained, tmp_path_factory, nearly_all_are_alike):
    """A run that trains the queries of the trained model; its flags, its folder and its losses."""
    folder = tmp_path_factory.mktemp("second")
    flags = {"model": trained[0], "freeze_gallery": True, "save_steps": 2, "save_total_limit": 9}
    return flags, folder, train(folder, without=["phase1_steps"], **flags)


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
    resumed = train(tmp_path / "resumed", ["phase1_steps"], **flags, resume_from_checkpoint=folder / "checkpoint-4")
    assert resumed == losses
    assert (tmp_path / "resumed/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_chunked_step_is_the_same(second_stage, train, tmp_path):
    flags, _, losses = second_stage
    assert train(tmp_path, ["phase1_steps"], **flags, grad_cache_chunk=3) == pytest.approx(losses, abs=1e-3)


def test_all_steps_train_the_tower(second_stage, trained, train, tmp_path, capsys):
    """Nothing is new that would have to train alone first, and no line speaks of a phase 1."""
    train(tmp_path, ["phase1_steps"], model=trained[0], freeze_gallery=True, max_steps=1)
    said = capsys.readouterr().out
    assert "a frozen gallery of 23 targets, 0 of products" in said and "phase 1" not in said
    before, after = (load_model(str(place)).state_dict() for place in (trained[0], second_stage[1] / "checkpoint-2"))
    weight = "vision_model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(before[weight], after[weight])


def test_other_categories_leave_the_gallery_as_it_is(train, trained, tmp_path):
    """Indexes are of the model with the categories that it had."""
    first = load_model(str(trained[0]))
    names = [*reversed(first.config.categories), "Belts"]
    train(tmp_path, model=trained[0], freeze_gallery=True, phase1_steps=0, max_steps=1, categories=names)
    later = load_model(str(tmp_path))
    assert later.config.categories == names and later.gallery.config.categories == first.config.categories
    assert weights_digest(later.gallery) == weights_digest(first)


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
