"""Flags of evaluate_lrvsf.py: what is measured, what is drawn, and what is refused before torch is imported."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lrvsf.data.names import did_you_mean
from lrvsf.flags import FlagParser
from lrvsf.paths import PRODUCTS, check_model, check_output, near
from lrvsf.recipe import read_arguments

GALLERY_SIZES = (500, 2000, 5000)
STEPS = {  # of evaluate_lrvsf.py, besides measuring; each module has a `main`
    "compare": "lrvsf.evaluation.pages.compare",
    "picture": "lrvsf.evaluation.pages.picture",
    "folds": "lrvsf.evaluation.stored_folds",
}


@dataclass
class EvaluateArguments:
    """What is measured, and how."""

    model: str = field(
        metadata={"help": "Model folder, or name on the Hub: CondViT; CLIP, SigLIP or DINO as a baseline."}
    )
    data_root: str = field(metadata={"help": "Test set folder with products.parquet and distractors/."})
    output_dir: str = field(metadata={"help": "Where results.json, queries.parquet and the plots go."})
    embeds: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the model's embeddings, which are taken from there; what it lacks is made. "
            "Default: embeds in output_dir."
        },
    )
    protocol: str = field(
        default="bootstrap",
        metadata={
            "help": "The published leaderboard's or paper's, which have their sizes, or draws of one's own.",
            "choices": ["bootstrap", "leaderboard", "paper"],
        },
    )
    product_folds: str | None = field(
        default=None, metadata={"help": "leaderboard: the published bootstrapped_indices.pt. Default: from the seed."}
    )
    stored_folds: str | None = field(
        default=None, metadata={"help": "paper: published folds, made by evaluate_lrvsf.py folds."}
    )
    restrict_to_category: bool = field(
        default=False, metadata={"help": "Only items of the target's category in a gallery; paper measures both."}
    )
    allow_unmatched_categories: bool = field(
        default=False,
        metadata={
            "help": "Measure within categories although distractors have none, or a category has no distractor. "
            "Recall is then too good; the table says how many items each category's gallery has."
        },
    )
    bf16_ranks: bool = field(
        default=False, metadata={"help": "Count ranks by bfloat16 products first: the same ranks, sooner on new CPUs."}
    )
    gallery_sizes: list[int] | None = field(
        default=None,
        metadata={"help": "bootstrap: numbers of distractors, at most the test set's. Default: 500, 2000, 5000."},
    )
    folds: int | None = field(
        default=None, metadata={"help": "bootstrap: draws of products and distractors, at least 2. Default: 20."}
    )
    products_per_fold: int | None = field(
        default=None,
        metadata={"help": "bootstrap: queries in a fold. Default: as many as the test set has, at most 1000."},
    )
    seed: int = field(default=0, metadata={"help": "Of the draws. Models are comparable at equal seeds."})
    conditioning: str | None = field(
        default=None,
        metadata={
            "help": "What the queries are conditioned on. Default: what the model was made for.",
            "choices": ["category", "none"],
        },
    )
    dims: int | None = field(
        default=None,
        metadata={"help": "Keep so many first dimensions, for a model trained with matryoshka_dims. Default: all."},
    )
    batch_size: int = field(default=256, metadata={"help": "Images per forward pass, on each process."})
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Run the model in bfloat16. Default: in the bootstrap protocol, on GPUs and CPUs where it is much "
            "faster; the published protocols' scores are of float32."
        },
    )
    store_dtype: str = field(
        default="float16",
        metadata={"help": "Of the embeddings on the disk, from which is measured.", "choices": ["float16", "float32"]},
    )
    max_bad_fraction: float = field(
        default=0.01, metadata={"help": "Refuse to measure when a larger share of the images cannot be read."}
    )
    max_bad_in_a_row: int = field(
        default=100, metadata={"help": "Refuse to measure when so many in succession cannot be read."}
    )

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")
        if Path(self.output_dir).is_file():
            raise ValueError(f"output_dir={self.output_dir} is a file. Give a folder's name.")


@dataclass
class PictureArguments:
    """What is drawn."""

    attention: list[int] = field(
        default_factory=list,
        metadata={"help": "Rows of products.parquet: attention.png shows what their queries look at."},
    )
    attention_categories: list[str] = field(
        default_factory=list, metadata={"help": "Conditions that attention.png shows. Default: all of the model's."}
    )
    sheet: int = field(
        default=0, metadata={"help": "Successes and worst failures that sheet.html shows, of each so many; 0: none."}
    )

    conditioning_page: bool = field(
        default=False,
        metadata={"help": "conditioning.html: does the condition help, and what does another one change?"},
    )

    def __post_init__(self) -> None:
        if self.attention_categories and not self.attention:
            raise ValueError(f"attention_categories={self.attention_categories} needs --attention, the rows to draw.")
        if self.sheet < 0:
            raise ValueError(f"sheet={self.sheet} must be at least 0.")


def read_evaluation(description: str, arguments: list[str]) -> tuple[list[str], Namespace]:
    """The flags of `EvaluateArguments` and `PictureArguments`, and what they ask for: nothing known to be wrong.

    Raises:
        ValueError: a step or flag that there is not, a wrong value.
        OSError: a folder that is not there, or is not what it should be.
    """
    word = arguments[0] if arguments else ""
    if not word.startswith("-") and not Path(word).exists() and (meant := did_you_mean(word, STEPS)):
        raise ValueError(f"there is no step {word!r}.{meant}")  # else the word names a recipe
    usage = "%(prog)s --model MODEL --data_root FOLDER --output_dir FOLDER\n    [--flag value ...]\n"
    usage += f"    %(prog)s {{{','.join(STEPS)}}} --help"
    classes = ((one.__module__, one.__name__) for one in (EvaluateArguments, PictureArguments))
    flags, asked = read_arguments(FlagParser(usage, description, *classes), arguments)
    check_evaluation(asked)
    return flags, asked


def check_galleries(sizes: Sequence[int], available: int) -> None:
    """Refuses galleries that the distractors cannot fill with different images.

    Drawing with replacement would fill them all the same, with repeats, and give a better score than the size
    deserves.
    """
    if too_large := [size for size in sizes if size > available]:
        raise ValueError(
            f"gallery_sizes has {', '.join(map(str, too_large))}, but only {available} distractors are available. "
            "The scores would not be comparable. Give --gallery_sizes up to that number, or get more distractors."
        )


def check_evaluation(asked: Namespace) -> None:
    """Refuses what evaluate_lrvsf.py cannot read or write."""
    check_model(asked.model)
    check_test_set(asked.data_root)
    for flag in ("product_folds", "stored_folds"):
        if (path := getattr(asked, flag)) is not None and not Path(path).is_file():
            raise FileNotFoundError(f"--{flag}: there is no file {path}{near(Path(path))}")
    check_output(Path(asked.output_dir))
    if asked.protocol == "bootstrap":
        from lrvsf.data.testset import ProductTestSet  # here, as pyarrow would delay --help and every other mistake

        sizes = GALLERY_SIZES if asked.gallery_sizes is None else asked.gallery_sizes
        check_galleries(sizes, ProductTestSet(asked.data_root).n_distractors)


def check_test_set(root: str) -> None:
    """Refuses a folder without a test set's products, with the folder that may be meant."""
    if not (Path(root) / PRODUCTS).is_file():
        places = (Path(root), Path(root).parent)  # a prepared folder, or one of those within it
        tests = [place / name for place in places for name in ("test", "validation")]
        meant = [str(test) for test in tests if (test / PRODUCTS).is_file()]
        said = f". Did you mean {meant[0]}?" if meant else near(Path(root))
        raise FileNotFoundError(f"{root} has no {PRODUCTS}: give the folder of a test set{said}")
