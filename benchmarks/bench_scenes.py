"""How many of the things that a scene shows a model finds first, each asked for by its category or its caption.

    python benchmarks/bench_scenes.py assets/mini-condvit data/mini/test
    python benchmarks/bench_scenes.py runs/mini-text data/mini/two_of_a_kind --texts

It says how rare a picture is in which all is found, as `evaluate_lrvsf.py picture` draws. The gallery is all targets
and all distractors of the test set, once; a tie is not found. What is no product of the test set is not asked for.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder, load_model
from lrvsf.evaluation.pages.picture import gallery_of, known_products


def found_first(encoder: Encoder, test_set: ProductTestSet) -> list[list[bool]]:
    """For each scene, which of the products that it is known to show are found first."""
    gallery, _ = gallery_of(encoder, test_set)
    if (lost := test_set.n_products + test_set.n_distractors - len(gallery)) > 0:
        raise SystemExit(
            f"{test_set.root}: {lost} rows cannot be read, and rows would be taken for others; take them out"
        )
    texts = test_set.texts() if encoder.conditioning == "text" else test_set.categories()
    found, seen = [], set()
    for product, known in zip(test_set.products(), known_products(test_set), strict=True):
        if product.query_image in seen:
            continue
        seen.add(product.query_image)
        queries = encoder.embed([encoder.pixels(product.query_image)] * len(known), [texts[row] for row in known])
        scores = queries @ gallery.T  # (n, gallery): products first, in the order of their rows
        own = scores[torch.arange(len(known)), known]
        found.append(((scores >= own[:, None]).sum(1) == 1).tolist())
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("test_set")
    parser.add_argument("--texts", action="store_true", help="ask by captions")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    test_set = ProductTestSet(args.test_set)
    found = found_first(Encoder(load_model(args.model), "text" if args.texts else "category"), test_set)
    shown, first = ([count(one) for one in found] for count in (len, sum))
    print("| things | scenes that show so many | scenes in which so many are found first |\n| --- | --- | --- |")
    for things in range(max(shown) + 1):
        print(f"| {things} | {shown.count(things):,} | {first.count(things):,} |")
    print(f"In {sum(map(all, found)):,} of {len(found):,} scenes all that they show are found first.")


if __name__ == "__main__":
    main()
