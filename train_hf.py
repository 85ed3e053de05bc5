"""Trains CondViT.

    accelerate launch train_hf.py recipes/mini.yaml [--flag value ...]

A recipe is a YAML file of flags; flags on the command line override it. The output folder becomes a complete Hub
repository: weights, code, processor, model card, TensorBoard logs.
"""

from __future__ import annotations

import gc
import sys
from argparse import Namespace
from pathlib import Path

from lrvsf import command
from lrvsf.bounds import check_numbers
from lrvsf.flags import FlagParser
from lrvsf.paths import check_training
from lrvsf.recipe import parse_classes, read_arguments
from lrvsf.signals import end_at_once


def read(arguments: list[str] | None = None) -> tuple[list[str], Namespace]:
    """The flags, of a recipe and of the command line, and what they ask for: nothing known to be wrong."""
    classes = (("lrvsf.training.arguments", name) for name in ("ModelArguments", "CondViTTrainingArguments"))
    parser = FlagParser("%(prog)s [RECIPE.yaml] [--flag value ...]", __doc__, *classes)
    flags, asked = read_arguments(parser, sys.argv[1:] if arguments is None else arguments)
    check_numbers(asked)
    if not command.several_machines():  # else all look together: none then waits for one that has refused
        check_training(asked)
    return flags, asked


if __name__ == "__main__":  # the imports below take seconds: what is wrong is told before
    command.run(read)
    end_at_once("what was saved stays.")

import torch
from accelerate import PartialState
from transformers import set_seed

from lrvsf.data.stream import check_shared_memory
from lrvsf.hub.card import write_training_card
from lrvsf.hub.encoder_place import check_found_anywhere
from lrvsf.hub.push_model import open_repository, push_model
from lrvsf.processes import alone_in
from lrvsf.training.arguments import CondViTTrainingArguments, ModelArguments
from lrvsf.training.launch.start_check import check_processes, check_shared, warn_of_slow_gradients
from lrvsf.training.resuming import of_step
from lrvsf.training.source import caption_store, training_folder, training_products, validation_set
from lrvsf.training.start import start_model, start_processor
from lrvsf.training.trainer import CondViTTrainer


def main(arguments: list[str] | None = None) -> None:
    flags, asked = read(arguments)
    args, training = parse_classes((ModelArguments, CondViTTrainingArguments), flags, asked, machine=True)
    command.quiet_libraries()
    run(args, training, check_processes(asked, args, training))
    # Drop every reference to the process group before the interpreter exits; otherwise it is destroyed during shutdown
    # and its threads abort.
    gc.collect()
    PartialState().destroy_process_group()


def run(args: ModelArguments, training: CondViTTrainingArguments, rate: float | None) -> None:
    if training.push_to_hub and training.process_index == 0:  # what the Hub will refuse, it refuses before the work
        repo = training.hub_model_id or Path(training.output_dir).resolve().name
        training.hub_model_id = open_repository(repo, training.hub_private_repo, training.hub_token)
    with alone_in(Path(training.output_dir), "a training"):
        check_shared(Path(training.output_dir))
        train(args, training, rate)


def train(args: ModelArguments, training: CondViTTrainingArguments, rate: float | None) -> None:
    folder = training_folder(args.data)
    check_shared_memory()
    set_seed(training.seed)
    model = start_model(args)
    if training.push_to_hub:  # what could not be pushed is not trained
        check_found_anywhere(model.config.to_dict(), "leave --text_encoder_in_checkpoint out")
    shards = training_products(folder, training, model.config)
    validation = validation_set(args.data, training.output_dir) if training.eval_strategy != "no" else None
    processor = start_processor(model)
    texts = caption_store(training, args.data, model, processor.tokenizer, validation)
    warn_of_slow_gradients(rate, model)
    trainer = CondViTTrainer(model, training, shards, validation, texts, processing_class=processor)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    folder = trainer.finish(getattr(torch, args.save_dtype))
    if trainer.is_world_process_zero():
        write_training_card(folder, args, training, trainer.state, model, validation)
        images = trainer.skipped
        if images.good or images.bad:
            print(images.summary() if images.bad else f"{images.good} images, none bad")
        else:
            print("the run had ended before; no step was taken now")
        print(f"trained {trainer.state.global_step} steps; the model{of_step(trainer.state, training)} is in {folder}")
        if training.push_to_hub:
            hub = (training.hub_private_repo, training.hub_token, training.hub_revision)
            print(f"pushed: {push_model(folder, training.hub_model_id, *hub)}")


if __name__ == "__main__":
    command.run(main)
