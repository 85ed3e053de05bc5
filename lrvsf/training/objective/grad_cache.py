"""A contrastive batch of any size in the memory of one chunk (GradCache, arXiv 2101.06983).

The loss needs all embeddings at once, but not what the tower remembers of them. So

1. each chunk is embedded without a graph;
2. the loss of all embeddings is differentiated with respect to them;
3. each chunk is embedded once more, with a graph, through which its embeddings' gradients flow.

Loss and gradients are the plain step's; the price is a second forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]
Embed = Callable[[nn.Module, Inputs], tuple[Tensor, ...]]
Loss = Callable[..., Tensor]


def cached_step(
    model: nn.Module, inputs: Inputs, chunk: int, embed: Embed, loss: Loss, scale: Tensor, backward: Callable
) -> Tensor:
    """Adds the whole batch's gradients to the parameters and returns the loss, without its graph.

    Args:
        model: called once a chunk and pass; under DistributedDataParallel gradients are averaged in the last chunk,
            of split weights in each, as holding back would keep them whole.
        inputs: the model's tensors, B rows each.
        chunk: rows of one call; the last call takes what is left.
        embed: (model, rows of `inputs`) -> embeddings, a tuple of tensors with one row for each of the inputs'.
        loss: (*embeddings of all B rows, scale) -> 0-d tensor.
        scale: the parameter, besides the model's inputs, that the loss depends on.
        backward: what differentiates a 0-d tensor, such as `accelerator.backward`.
    """
    rows = len(next(iter(inputs.values())))
    parts = [{name: value[start : start + chunk] for name, value in inputs.items()} for start in range(0, rows, chunk)]
    # 1. Each chunk, without a graph. Dropout must draw the same numbers again in step 3.
    embedded, random_states = [], [_random_state()]
    with torch.no_grad():
        for part in parts:
            embedded.append(embed(model, part))
            random_states.append(_random_state())
    # 2. The loss, and its gradient for every embedding and for the temperature.
    leaves = [torch.cat(column).requires_grad_() for column in zip(*embedded, strict=True)]  # (B, D) each
    temperature = scale.detach().requires_grad_()
    total = loss(*leaves, temperature)
    *gradients, scale_gradient = torch.autograd.grad(total, [*leaves, temperature])
    columns = [gradient.split(chunk) for gradient in gradients]
    # 3. Each chunk, with a graph: d(sum of embeddings x constants) = the constants, handed on to the weights.
    for number, (part, state) in enumerate(zip(parts, random_states, strict=False)):
        _set_random_state(state)
        last = number == len(parts) - 1
        # DistributedDataParallel averages once, in the last chunk, what all chunks have added up.
        with nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync():
            outputs = embed(model, part)
            flow = sum((out * column[number]).sum() for out, column in zip(outputs, columns, strict=True))
            backward(flow + scale * scale_gradient if last else flow)  # the temperature's gradient: once
    return total.detach()


def _random_state() -> list[Tensor]:
    devices = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *devices]


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    for device in state[1:]:
        torch.cuda.set_rng_state(device)
