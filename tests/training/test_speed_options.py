"""What makes a step fast changes nothing that is trained."""

import copy

import pytest
import torch

from lrvsf.training.loss import info_nce
from lrvsf.training.patches import use_patch_product


def loss_and_gradients(model, call):
    generator = torch.Generator().manual_seed(1)
    queries, targets = torch.randn(2, 5, 3, 32, 32, generator=generator)
    output = call(pixel_values=queries, category_indices=torch.arange(5), target_pixel_values=targets)
    loss = info_nce(output.image_embeds, output.target_embeds, model.logit_scale)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.fixture
def plain(make_model):
    """A model with weights large enough to tell images apart, with its own loss and gradients."""
    model = use_patch_product(make_model(logit_scale_init_value=1.0)).train()
    with torch.no_grad():
        for weight in (parameter for parameter in model.parameters() if parameter.dim() > 1):
            weight.mul_(10)
    return copy.deepcopy(model), *loss_and_gradients(model, model)


def assert_same(found, loss, gradients):
    torch.testing.assert_close(found[0], loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_it_is_traced_whole_and_computes_the_same(plain):
    """No break in the graph: a real backend then sees all of a step's forward pass. This one needs no compiler."""
    model, *expected = plain
    traced = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same(loss_and_gradients(model, traced), *expected)


def test_checkpointed_layers_keep_less_and_compute_the_same(plain):
    model, *expected = plain
    kept = {False: 0, True: 0}
    for checkpointed in kept:
        twin = copy.deepcopy(model)
        if checkpointed:
            twin.gradient_checkpointing_enable()

        def keep(tensor, checkpointed=checkpointed):
            kept[checkpointed] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            assert_same(loss_and_gradients(twin, twin), *expected)
    assert kept[True] < kept[False] / 2
