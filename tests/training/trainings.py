"""train_hf.py as processes that write down what they train on and meet a fault, many times over.

    python trainings.py                             reads lines of JSON, [log, processes, fault, at, flags]
    torchrun ... trainings.py LOG FAULT AT FLAGS... is one process of one training

It answers each line with the exit statuses of that many processes that train together; once one fails, the others are
killed, as a launcher does. They are forks of this one, which spares them the imports. Each rank appends a line of JSON
for each step to LOG.RANK: [step, product ids, loss], and what it says to LOG.said. The fault comes at step AT, between
the backward pass and the change of weights, or while that step's checkpoint is saved:

none
kill        SIGKILL on the first rank
terminate   SIGTERM on the last rank
group       SIGTERM to the process group, its loading processes included
launcher    SIGTERM to torchrun, which passes it on
ctrl-c      SIGINT to the process group, its loading processes included
epoch's end SIGINT while the loading processes of the epoch that ends at STEP are shut down
deaf        the process hangs beyond Python, and gets SIGINT twice
unanswered  the process hangs beyond Python, and gets SIGTERM once, which has half a second to be answered
raise       an error on the last rank
nan         a loss that is not a number, on the last rank
worker      SIGKILL on one of the processes that load data
FILE        SIGKILL while FILE is written into the checkpoint, half of it there
rename      SIGKILL when the checkpoint is about to get its name
renamed     SIGKILL when it has just got it
"""

import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from forks import serve
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import train_hf
from lrvsf import signals
from lrvsf.training import checkpoints
from lrvsf.training.objective import frozen_gallery
from lrvsf.training.trainer import CondViTTrainer


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def meet(fault: str, trainer: CondViTTrainer) -> None:
    """What happens between the gradients and the weights."""
    last = trainer.args.process_index == trainer.args.world_size - 1
    if fault == "kill" and trainer.args.process_index == 0:
        die()
    elif fault == "terminate" and last:
        os.kill(os.getpid(), signal.SIGTERM)
    elif fault in ("group", "ctrl-c"):
        # By another process, as a scheduler would: loading processes obey their trainer.
        name = "-TERM" if fault == "group" else "-INT"
        subprocess.run(["kill", name, "--", f"-{os.getpgrp()}"], start_new_session=True, check=True)
    elif fault == "epoch's end":
        shut_down = _MultiProcessingDataLoaderIter._shutdown_workers

        def interrupted(self):
            _MultiProcessingDataLoaderIter._shutdown_workers = shut_down
            os.kill(os.getpid(), signal.SIGINT)
            shut_down(self)

        _MultiProcessingDataLoaderIter._shutdown_workers = interrupted
    elif fault in ("deaf", "unanswered"):
        signals.ANSWER_WITHIN = 0.5 if fault == "unanswered" else 100
        kill = f"kill -INT {os.getpid()}; sleep 1; kill -INT {os.getpid()}"
        subprocess.Popen(["sh", "-c", kill if fault == "deaf" else f"kill -TERM {os.getpid()}"], start_new_session=True)
        mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
        for _ in range(2):  # the second waits for the first, and no handler of Python's runs
            libc.pthread_mutex_lock(mutex)
    elif fault == "launcher" and last:
        os.kill(os.getppid(), signal.SIGTERM)
        while not trainer.signals.asked:  # a launcher takes its time to pass it on
            time.sleep(0.01)
    elif fault == "raise" and last:
        raise ValueError("made to fail")
    elif fault == "worker":
        multiprocessing.active_children()[0].kill()


def break_the_save_of(step: int, fault: str, output: Path) -> None:
    """Lets the process die while a checkpoint is written into the output folder."""
    save, seal, publish = CondViTTrainer._save_checkpoint, checkpoints.seal, checkpoints.publish_folder

    def half_saved(self, model, trial):
        """Trainer's files are there one after another: the one that is being written is cut in half."""
        if self.state.global_step != step or self.args.process_index != 0:
            return save(self, model, trial)
        for name in ("save_model", "_save_optimizer_and_scheduler", "_save_rng_state"):
            setattr(self, name, then_die(getattr(self, name)))
        self.state.save_to_json = then_die(self.state.save_to_json)
        return save(self, model, trial)

    def then_die(write):
        def writing(*args, **kwargs):
            result = write(*args, **kwargs)
            for path in (output / checkpoints.STAGING).rglob(fault):
                os.truncate(path, path.stat().st_size // 2)
                die()
            return result

        return writing

    def half_sealed(folder, run):
        seal(folder, run)
        if fault == checkpoints.MANIFEST and folder.name == checkpoints.name_of(step):
            os.truncate(folder / fault, 20)
            die()

    def around_the_rename(staged, final):
        this = final.name == checkpoints.name_of(step)
        if this and fault == "rename":
            die()
        publish(staged, final)
        if this and fault == "renamed":
            die()

    CondViTTrainer._save_checkpoint = half_saved
    checkpoints.seal, checkpoints.publish_folder = half_sealed, around_the_rename


def train(log: str, fault: str, fault_step: int, flags: list[str]) -> None:
    frozen_gallery.ALIKE = (0.95, 1.0)  # drawings of 16 pixels are all alike to a model of one layer
    training_step, compute_loss = CondViTTrainer.training_step, CondViTTrainer.compute_loss
    break_the_save_of(fault_step, fault, Path(flags[flags.index("--output_dir") + 1]))

    def logged(self, model, inputs, *args, **kwargs):
        ids = list(inputs["product_ids"])
        loss = training_step(self, model, inputs, *args, **kwargs)
        step = self.state.global_step + 1
        if step == fault_step:
            meet(fault, self)
        with open(f"{log}.{self.args.process_index}", "a") as file:
            file.write(json.dumps([step, ids, loss.item()]) + "\n")
        return loss

    def poisoned(self, *args, **kwargs):
        loss = compute_loss(self, *args, **kwargs)
        last = self.args.process_index == self.args.world_size - 1
        return loss * float("nan") if fault == "nan" and last and self.state.global_step + 1 == fault_step else loss

    CondViTTrainer.training_step, CondViTTrainer.compute_loss = logged, poisoned
    train_hf.main(flags)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    else:
        serve(lambda log, rank, *run: train(log, *run))
