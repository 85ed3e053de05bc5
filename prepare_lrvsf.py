"""Prepares data for train_hf.py and evaluate_lrvsf.py.

    python prepare_lrvsf.py mini OUT [--products 16000 --test_products 500 --distractors 5000 --image_size 160 --seed 0]

draws Mini LRVS-F: product shards in OUT/train, test sets in OUT/validation and OUT/test.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields

from lrvsf.data.mini.build import MiniSize, build_mini

HELP = {
    "products": "training products",
    "test_products": "queries of the test set, and of the validation set",
    "distractors": "distractors of the test set; the validation set has a fifth of them",
    "image_size": "pixels along the longer side",
    "seed": "the same seed gives the same bytes",
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    mini = steps.add_parser("mini", help="draw Mini LRVS-F", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    mini.add_argument("out", help="folder to write")
    for field in fields(MiniSize):
        mini.add_argument(f"--{field.name}", type=int, default=field.default, help=HELP[field.name])
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    try:
        size = MiniSize(**{field.name: getattr(args, field.name) for field in fields(MiniSize)})
        drawn = build_mini(args.out, size)
    except ValueError as error:
        sys.exit(f"prepare_lrvsf.py mini: {error}")
    print(
        f"{args.out}: {'drawn' if drawn else 'already there'}: {size.products} training products, "
        f"{size.test_products} queries and {size.distractors} distractors to test on (seed {size.seed})"
    )


if __name__ == "__main__":
    main()
