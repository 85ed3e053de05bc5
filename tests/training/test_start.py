"""What a run starts from: CLIP with new condition tokens, or a CondViT that takes other categories."""

import json
import logging

import pytest
import torch
from made import tiny_clip
from transformers import set_seed

from configuration_condvit import CATEGORIES
from lrvsf.training.arguments import ModelArguments
from lrvsf.training.start import start_model, take_categories
from modeling_condvit import CondViTModel


@pytest.fixture
def clip(tmp_path):
    tiny_clip(vision={"hidden_size": 64}).save_pretrained(tmp_path / "c")
    return str(tmp_path / "c")


@pytest.fixture
def condvit(make_model, tmp_path):
    model = make_model(categories=["Bags", "Feet", "Neck"], num_condition_tokens=2)
    model.save_pretrained(tmp_path / "condvit")
    return str(tmp_path / "condvit"), model


def test_condition_tokens_start_as_published_or_as_clip_s(clip, tmp_path):
    names = [str(i) for i in range(400)]  # enough rows for a narrow estimate of the deviation
    for init, table, position in (("published", 1, 64**-0.5), ("clip", 64**-0.5, 0.02)):
        args = ModelArguments(model=clip, data=str(tmp_path), categories=names, num_condition_tokens=50)
        args.condition_init = init
        set_seed(0)
        model = start_model(args)
        assert model.condition_embedding.std().item() == pytest.approx(table, rel=0.01)
        assert model.condition_position_embedding.std().item() == pytest.approx(position, rel=0.1)
        assert model.condition_embedding.mean().abs() < 0.01 * table


def test_the_published_start_is_the_default_and_shares_clip_s_weights(clip, tmp_path):
    set_seed(0)
    model = start_model(ModelArguments(model=clip, data=str(tmp_path)))
    assert model.condition_embedding.std() > 0.9 and model.config.categories == list(CATEGORIES)
    plain = start_model(ModelArguments(model=clip, data=str(tmp_path), condition="none"))
    assert torch.equal(plain.visual_projection.weight, model.visual_projection.weight)


def test_categories_are_the_catalog_s_by_default(clip, tmp_path):
    catalog = tmp_path / "catalog.json"
    catalog.write_text(json.dumps({"categories": {"rugs": {"train": 3}, "lamps": {"train": 2}}}))
    args = ModelArguments(model=clip, data=str(tmp_path))
    assert start_model(args).config.categories == ["rugs", "lamps"]
    args.categories = ["lamps"]
    assert start_model(args).config.categories == ["lamps"]
    args.categories = None
    catalog.write_text(json.dumps({"categories": {}}))
    with pytest.raises(ValueError, match="has no category, says its catalog.json; .*--condition none"):
        start_model(args)
    args.condition = "none"
    assert start_model(args).config.condition == "none"
    args.condition = None
    for broken in ("{", "[]", '{"categories": 3}'):
        catalog.write_text(broken)
        with pytest.raises(ValueError, match="catalog.json does not say which categories .*--categories"):
            start_model(args)


MEAN, LIKE = "new, from the mean of all that it knew", "new, from the tokens of 'Bags'"


@pytest.mark.parametrize(
    "asked, like, said",
    [
        (["Bags", "Feet", "Neck", "Rugs"], None, f"Kept: 'Bags', 'Feet', 'Neck'; {MEAN}: 'Rugs'."),
        (["Neck", "Bags", "Feet"], None, "Kept: 'Neck', 'Bags', 'Feet'."),
        (["Neck"], None, "Kept: 'Neck'; dropped: 'Bags', 'Feet'."),
        (["Rugs", "Neck"], "Bags", f"Kept: 'Neck'; {LIKE}: 'Rugs'; dropped: 'Bags', 'Feet'."),
        (["feet", "Rugs"], None, f"N{MEAN[1:]}: 'feet', 'Rugs'; dropped: 'Bags', 'Feet', 'Neck'. "
         "'feet' is new. Did you mean 'Feet'?"),
    ],
)  # fmt: skip
def test_a_trained_model_takes_other_categories(condvit, tmp_path, caplog, asked, like, said):
    folder, before = condvit
    with caplog.at_level(logging.WARNING):
        model = start_model(ModelArguments(model=folder, data=str(tmp_path), categories=asked, new_category_like=like))
    (line,) = caplog.messages
    assert line == f"{folder} takes other categories. {said}"
    known, table = before.config.categories, before.condition_embedding
    start = table.mean(0) if like is None else table[known.index(like)]
    for name, row in zip(asked, model.condition_embedding, strict=True):
        assert torch.equal(row, table[known.index(name)] if name in known else start), name
    kept = {name: tensor for name, tensor in before.state_dict().items() if name != "condition_embedding"}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kept.items())
    model.save_pretrained(tmp_path / "again")
    again = CondViTModel.from_pretrained(tmp_path / "again")
    assert again.config.categories == asked and torch.equal(again.condition_embedding, model.condition_embedding)


def test_its_own_categories_are_no_change(condvit, tmp_path, caplog):
    folder, before = condvit
    for asked in (None, before.config.categories):
        model = start_model(ModelArguments(model=folder, data=str(tmp_path), categories=asked))
        assert torch.equal(model.condition_embedding, before.condition_embedding)
    assert not caplog.messages


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"categories": ["Bags", "Rugs"], "new_category_like": "bags"}, "does not know. Did you mean 'Bags'"),
        ({"categories": ["Bags"], "new_category_like": "Bags"}, "no category is new"),
        ({"new_category_like": "Bags"}, "no category is new"),
        ({"categories": ["Bags", "Bags"]}, "more than once"),
        ({"categories": ["Rugs", "Rugs"]}, "more than once"),
        ({"categories": ["Bags", " "]}, "holds a blank"),
        ({"condition": "none"}, "condition='category', the run asks for 'none'"),
    ],
)
def test_categories_that_cannot_be_taken(condvit, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        start_model(ModelArguments(model=condvit[0], data=str(tmp_path), **flags))


def test_a_clip_has_no_category_to_begin_with(clip, tmp_path):
    with pytest.raises(ValueError, match="is a CLIP, which has no category"):
        start_model(ModelArguments(model=clip, data=str(tmp_path), new_category_like="Bags"))


def test_an_unconditioned_model_takes_none(make_model):
    with pytest.raises(ValueError, match="can learn no category"):
        take_categories(make_model(condition="none"), ["Bags"])
