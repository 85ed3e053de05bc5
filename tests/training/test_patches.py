"""The fast patch embedding against its naive twin, the convolution."""

import copy

import torch

from lrvsf.training.fast_tower import use_patch_product


def test_embeddings_and_gradients_are_the_convolution_s(tiny_model):
    plain, fast = tiny_model.double(), use_patch_product(copy.deepcopy(tiny_model))
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wide = torch.randn(2, 3, 40, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for model in (plain, fast):
        output = model(pixels, torch.tensor([0, 4, 9]), wide, interpolate_pos_encoding=True)
        (output.image_embeds.sum(0) * output.target_embeds.sum(0)).sum().backward()
        model.found = output
    torch.testing.assert_close(fast.found.image_embeds, plain.found.image_embeds)
    torch.testing.assert_close(fast.found.target_embeds, plain.found.target_embeds)
    for name, parameter in plain.named_parameters():
        if name != "logit_scale":
            torch.testing.assert_close(fast.get_parameter(name).grad, parameter.grad, rtol=1e-5, atol=1e-9)


def test_the_weight_stays_the_model_s_own(tiny_model):
    weight, names = tiny_model.vision_model.embeddings.patch_embedding.weight, list(tiny_model.state_dict())
    use_patch_product(tiny_model)
    assert tiny_model.vision_model.embeddings.patch_embedding.weight is weight
    assert list(tiny_model.state_dict()) == names
