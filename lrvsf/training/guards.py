"""Stops a run early: on a signal, or on a non-finite loss or gradient.

Both are looked at once a step, between the gradients and the weights, and by all processes together: none is left
waiting for one that has gone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from lrvsf import signals
from lrvsf.processes import largest_over
from lrvsf.training import checkpoints


class NonFinite(RuntimeError):
    """A loss or a gradient that is not a number, or infinite."""


class StopOnSignalOrNaN(TrainerCallback):
    """Ends the run on a non-finite gradient; after one of `signals.SIGNALS` saves a checkpoint and exits.

    The trainer notes each step in `loss`, 0-d without its graph, and `products`, the ids of its batch. `scaled` is
    whether a gradient scaler is at work, which meets infinite gradients on purpose.
    """

    def __init__(self, watch: signals.Watch, scaled: bool):
        self.watch, self.scaled, self.stopping = watch, scaled, 0
        self.loss: Tensor | None = None
        self.products: list[str] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        norm = gradient_norm([p.grad for p in model.parameters() if p.grad is not None])
        # A sum is finite only if both are: one comparison on the device, and one wait for it, together with the signal.
        finite = self.loss if self.scaled else self.loss + norm
        asked = torch.tensor(self.watch.asked, device=args.device)
        # The largest over all: one process's signal, or its bad number, ends the run on every one at this same step.
        bad, self.stopping = largest_over(torch.stack([~finite.isfinite(), asked]).int()).tolist()
        self.watch.answered = bool(self.stopping)
        if bad:
            raise NonFinite(
                f"step {state.global_step + 1}: the loss is {self.loss.item():g} on process "
                f"{args.process_index}, the norm of its gradient {norm.item():g}. The weights are as they were. "
                f"Products of this process's batch: {', '.join(self.products)}. "
                "Look at them, lower learning_rate, or set max_grad_norm; then resume from the newest checkpoint."
            )

    def on_step_end(self, args, state, control, **kwargs):
        if self.stopping:  # an evaluation may take longer than whoever sent the signal waits: a resumed run makes it up
            control.should_save, control.should_evaluate = True, False

    def on_save(self, args, state, control, **kwargs):
        if self.stopping:  # the checkpoint has its name by now, on the main process's word
            if state.is_world_process_zero:
                saved = f"{args.output_dir}/{checkpoints.name_of(state.global_step)}"
                ended = f"Ended by {signals.name_of(self.stopping)} after step {state.global_step}"
                signals.say(f"{ended}: {saved} is whole; --resume_from_checkpoint True goes on from it.")
            raise SystemExit(signals.status_of(self.stopping))


def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """The norm of all of them, 0-d; of sharded ones, of what this process holds."""
    # No communication: a number that is not finite shows on the process that holds it, and the flags are gathered.
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    return torch.nn.utils.get_total_norm(local)
