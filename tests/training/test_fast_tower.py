"""What makes a step fast changes nothing that is trained: against the plain tower, its naive twin."""

import copy

import pytest
import torch

from lrvsf.training.arguments import CondViTTrainingArguments
from lrvsf.training.fast_tower import compile_layers, use_patch_product
from lrvsf.training.objective.loss import info_nce


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


@pytest.mark.parametrize("checkpointed", [False, True])
def test_one_compiled_layer_serves_for_all(plain, checkpointed):
    """Each kind of call, conditioned or not, is traced once, however many layers there are; evaluation not at all."""
    model, *expected = plain
    traced = []

    def count(graph, inputs):
        traced.append(graph)
        return graph.forward

    if checkpointed:
        model.gradient_checkpointing_enable()
    compile_layers(model, backend=count)
    assert_same(loss_and_gradients(model, model), *expected)
    assert 1 <= len(traced) <= 2 < 2 * len(model.vision_model.encoder.layers)
    with torch.compiler.set_stance("force_eager"), torch.inference_mode():
        model.eval()(torch.randn(7, 3, 32, 32))
    assert len(traced) <= 2


def test_trainer_neither_compiles_the_tower_nor_rounds_products(tmp_path):
    """Trainer's own flag compiles all of the model, and switches TF32 on."""
    before = torch.get_float32_matmul_precision()
    args = CondViTTrainingArguments(
        output_dir=str(tmp_path), torch_compile=True, use_cpu=True, per_device_train_batch_size=4
    )
    assert args.torch_compile and args.torch_compile_backend is None
    assert torch.get_float32_matmul_precision() == before and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("machine", [True, False])
def test_layers_are_compiled_by_default_where_it_pays(tmp_path, monkeypatch, machine):
    monkeypatch.setattr("lrvsf.training.arguments.can_compile", lambda: machine)
    args = CondViTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=4)
    assert args.torch_compile is machine


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
