"""train_hf.py, run as a process that writes down what it trains on and can be made to die.

    python logged_run.py LOG KILL_AT FLAGS...

Each rank appends a line of JSON for each step to LOG.RANK: [step, product ids, loss]. At step KILL_AT (0: never) rank 0
dies by SIGKILL, after the backward pass and before the weights change.
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import train_hf
from lrvsf.training.trainer import CondViTTrainer


def main() -> None:
    log, kill_at, flags = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    training_step = CondViTTrainer.training_step

    def logged(self, model, inputs, *args, **kwargs):
        ids = list(inputs["product_ids"])
        loss = training_step(self, model, inputs, *args, **kwargs)
        step = self.state.global_step + 1
        if step == kill_at and self.args.process_index == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        with open(f"{log}.{self.args.process_index}", "a") as file:
            file.write(json.dumps([step, ids, loss.item()]) + "\n")
        return loss

    CondViTTrainer.training_step = logged
    train_hf.main(flags)


if __name__ == "__main__":
    main()
