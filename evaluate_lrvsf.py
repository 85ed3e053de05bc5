"""Measures a model on a test set: R@K at several gallery sizes, as a table, results.json, queries.parquet and plots.

    accelerate launch evaluate_lrvsf.py --model DIR --data_root DATA/test \\
        --output_dir RESULTS

It takes what train_hf.py wrote, or CLIP, SigLIP or DINO as an unconditioned baseline, and a test set as
prepare_lrvsf.py makes them. Runs as `python evaluate_lrvsf.py` too; `accelerate launch --multi_gpu --num_processes N`
takes N GPUs or, where there is none, N processes on the CPU, with the same draws.

Three steps besides, each with a --help of its own:

    evaluate_lrvsf.py compare NAME=RESULTS ...   several results in one table
    evaluate_lrvsf.py picture --model DIR ...    one scene, several conditions
    evaluate_lrvsf.py folds SOURCE TARGET        published folds, safe to read
"""

from __future__ import annotations

import gc
import logging
import sys
from importlib import import_module
from pathlib import Path

from lrvsf import command
from lrvsf.evaluation.arguments import STEPS, ClusterArguments, EvaluateArguments, PictureArguments, read_evaluation
from lrvsf.recipe import parse_classes
from lrvsf.signals import end_at_once

if __name__ == "__main__":  # the imports below take seconds: what is wrong is told before, and `compare` does without
    if sys.argv[1:2] and sys.argv[1] in STEPS:
        step = sys.argv.pop(1)
        command.run(lambda: import_module(STEPS[step]).main(), f"{command.script_name()} {step}")
        sys.exit()
    command.run(lambda: read_evaluation(__doc__, sys.argv[1:]))
    end_at_once("embeddings that are whole stay, and the same command goes on from them.")

import torch
from accelerate import PartialState

from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder, load_model, runs_in_bf16
from lrvsf.evaluation.bootstrap import chosen_settings, evaluate_bootstrap
from lrvsf.evaluation.embedded import Elsewhere, EmbeddedTestSet
from lrvsf.evaluation.pages.attention import write_attention
from lrvsf.evaluation.pages.conditions import check_conditions, measure_conditions, write_conditions
from lrvsf.evaluation.pages.plots import PLOTS, plot_all
from lrvsf.evaluation.pages.sheet import write_sheet
from lrvsf.evaluation.paper import evaluate_paper
from lrvsf.evaluation.queries import QueryTable
from lrvsf.evaluation.results import results_table, save_results, shown_name
from lrvsf.hub.mteb_result import save_mteb_result
from lrvsf.processes import alone_in
from lrvsf.terminal import never_refuse


def main(arguments: list[str] | None = None) -> None:
    flags, asked = read_evaluation(__doc__, sys.argv[1:] if arguments is None else arguments)
    args, pictures, place = parse_classes((EvaluateArguments, PictureArguments, ClusterArguments), flags, asked)
    command.quiet_libraries()
    # Without being told that there is no accelerator, each of several processes on a CPU would think itself alone.
    state = PartialState(cpu=not torch.cuda.is_available())  # as in training; MPS has no float64, which ties need
    logging.basicConfig(format="%(levelname)s %(message)s")
    never_refuse()
    gpu = state.device.type == "cuda"
    with alone_in(Path(args.output_dir), "an evaluation"), place.connected(gpu) as elsewhere:
        evaluate(args, pictures, state, elsewhere)
    gc.collect()  # as in train_hf.py: nothing may hold the process group when the interpreter ends
    state.destroy_process_group()


def evaluate(
    args: EvaluateArguments, pictures: PictureArguments, state: PartialState, elsewhere: Elsewhere | None
) -> None:
    settings = chosen_settings(args.protocol, vars(args))
    test_set = ProductTestSet(args.data_root)
    model = load_model(args.model)
    bf16 = runs_in_bf16(args.bf16, args.protocol, state.device)
    encoder = Encoder(model, args.conditioning or model.config.condition, bf16, state.device, args.dims)
    output = Path(args.output_dir)
    data = EmbeddedTestSet(args.open_store(encoder, test_set), elsewhere, args.views)
    if pictures.attention and state.is_main_process:  # first, as it takes seconds and a wrong row must not show late
        shown = pictures.attention_categories, output / "attention.png", pictures.attention_texts
        write_attention(encoder, test_set, pictures.attention, *shown)
        print(f"Wrote {output / 'attention.png'}.")
    if pictures.conditioning_page:
        check_conditions(data, args.allow_unmatched_categories)
    queries = QueryTable()
    if settings is None:
        measured = evaluate_paper(data, args.stored_folds, args.bf16_ranks, queries, args.allow_unmatched_categories)
    else:
        measured = evaluate_bootstrap(data, settings, queries)
    results = {"model": args.model, "data_root": args.data_root, **measured}
    if state.is_main_process:
        save_results(results, output / "results.json")
        queries.save(output / "queries.parquet")
        name = shown_name(results)
        plot_all({name: results}, {name: queries.table()}, output)
        print(results_table(results))
        print(f"\nWrote results.json, queries.parquet, {', '.join(PLOTS)} to {output}.")
        print(f"The embeddings are in {args.embeds_folder}; --embeds takes them from there.")
        if path := save_mteb_result(results, output):
            print(f"Wrote {path}, mteb's result file.")
    if pictures.conditioning_page:
        results["conditions"] = measure_conditions(data, args.batch_size, args.allow_unmatched_categories)
        if state.is_main_process:
            save_results(results, output / "results.json")
            write_conditions(results["conditions"], output / "conditioning.html", args.model)
            print(f"Wrote {output / 'conditioning.html'}.")
    if pictures.sheet:
        write_sheet(data, output / "sheet.html", pictures.sheet, args.seed, args.model)
        state.print(f"Wrote {output / 'sheet.html'}.")


if __name__ == "__main__":
    command.run(main)
