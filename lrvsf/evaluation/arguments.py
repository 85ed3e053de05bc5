"""Flags of evaluate_lrvsf.py: what is measured, what is drawn, and what is refused before torch is imported."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lrvsf.data.names import did_you_mean
from lrvsf.embedding.views import ONCE, read_views
from lrvsf.flags import FlagParser, flag
from lrvsf.paths import PRODUCTS, check_model, check_output, near, table_of
from lrvsf.recipe import read_arguments
from lrvsf.scale.engine import cluster_asked

if TYPE_CHECKING:
    from lrvsf.data.testset import ProductTestSet
    from lrvsf.embedding.encoder import Encoder
    from lrvsf.evaluation.embedded import Elsewhere, StoredTestSet

GALLERY_SIZES = (500, 2000, 5000)  # which Mini LRVS-F fills
STEPS = {  # of evaluate_lrvsf.py, besides measuring; each module has a `main`
    "compare": "lrvsf.evaluation.pages.compare",
    "picture": "lrvsf.evaluation.pages.picture",
    "folds": "lrvsf.evaluation.stored_folds",
}


@dataclass
class EvaluateArguments:
    """What is measured, and how."""

    model: str = flag(help="model folder, or name on the Hub: CondViT; CLIP, SigLIP or DINO as a baseline")
    data_root: str = flag(help="test set: a folder with products.parquet and distractors/")
    output_dir: str = flag(help="folder for results.json, queries.parquet and the plots")
    embeds: str | None = flag(
        None,
        "folder of the model's embeddings: what it holds is taken, what it lacks is made; by default embeds in "
        "output_dir. Or a Lance table with those of the gallery, see docs/scale.md: only queries are embedded",
    )
    protocol: str = flag(
        "bootstrap",
        "leaderboard and paper are the published protocols, with their gallery sizes; bootstrap is for test sets of "
        "other sizes",
        ["bootstrap", "leaderboard", "paper"],
    )
    product_folds: str | None = flag(
        None, "leaderboard: the published bootstrapped_indices.pt; by default drawn from the seed"
    )
    stored_folds: str | None = flag(None, "paper: the published folds, as the step folds writes them")
    restrict_to_category: bool = flag(
        False, "let galleries hold only items of the target's category; paper measures both"
    )
    allow_unmatched_categories: bool = flag(
        False,
        "measure within categories although distractors have none, or a category has no distractor: recall is then "
        "too good, and the table says how many items each category's gallery has",
    )
    bf16_ranks: bool = flag(False, "count ranks by bfloat16 products first: the same ranks, sooner on new CPUs")
    gallery_sizes: list[int] | None = flag(
        None, "bootstrap: numbers of distractors, at most the test set's; by default 500 2000 5000"
    )
    folds: int | None = flag(None, "bootstrap: draws of products and distractors, at least 2; by default 20")
    products_per_fold: int | None = flag(
        None, "bootstrap: queries in a fold; by default as many as the test set has, at most 1000"
    )
    seed: int = flag(0, "seed of all random draws; only results with equal seeds are comparable")
    conditioning: str | None = flag(
        None,
        "what the queries are conditioned on; by default what the model was made for; text is the caption "
        "(blip2_caption1), and a text model knows the names of categories too",
        ["category", "text", "none"],
    )
    query_views: str | None = flag(
        None,
        "bootstrap: embed each query by several views and average them, as whole,center0.8,flip: its picture, the "
        "middle of it by that share of each side, its mirror image. The published protocols ask with the whole alone",
    )
    dims: int | None = flag(
        None, "keep this many first dimensions, for a model trained with matryoshka_dims; by default all"
    )
    batch_size: int = flag(256, "images per forward pass, on each process")
    bf16: bool | None = flag(
        None,
        "run the model in bfloat16; by default in the bootstrap protocol, on GPUs and CPUs where it is much faster: "
        "the published protocols' scores are of float32",
    )
    store_dtype: str = flag(
        "float16", "type of the stored embeddings, which are what is measured", ["float16", "float32"]
    )
    max_bad_fraction: float = flag(0.01, "refuse to measure when a larger share of the images cannot be read")
    max_bad_in_a_row: int = flag(100, "refuse to measure when this many images in a row cannot be read")

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")
        if Path(self.output_dir).is_file():
            raise ValueError(f"output_dir={self.output_dir} is a file. Give a folder's name.")
        self.views = read_views(self.query_views)

    @property
    def embeds_folder(self) -> Path:
        """Where the embeddings are; those that a Lance table has are copied there."""
        own = Path(self.output_dir) / "embeds"
        return own if self.embeds is None or table_of(self.embeds) else Path(self.embeds)

    def open_store(self, encoder: Encoder, test_set: ProductTestSet) -> StoredTestSet:
        """The store of the embeddings, of which nothing is made yet.

        Raises ValueError: --embeds names a Lance table that does not fit.
        """
        from lrvsf.data.images import Tolerance  # here, as all that follows takes seconds to import
        from lrvsf.evaluation.embedded import StoredTestSet

        tolerance, parts = Tolerance(self.max_bad_fraction, self.max_bad_in_a_row), None
        if self.embeds and table_of(self.embeds):
            from lrvsf.scale.lance_gallery import gallery_parts  # here, as Lance need not be installed

            parts = gallery_parts(self.embeds, encoder, test_set, tolerance)
        settings = {"batch_size": self.batch_size, "tolerance": tolerance, "dtype": self.store_dtype}
        return StoredTestSet(self.embeds_folder, encoder, test_set, parts, **settings)


@dataclass
class PictureArguments:
    """What is drawn."""

    attention: list[int] = flag([], "rows of products.parquet: attention.png shows what their queries look at")
    attention_categories: list[str] = flag([], "conditions that attention.png shows; by default all of the model's")
    attention_texts: list[str] = flag([], "texts that attention.png shows instead, for a model that reads them")
    sheet: int = flag(0, "how many successes, and how many of the worst failures, sheet.html shows; 0: no page")
    conditioning_page: bool = flag(
        False, "write conditioning.html: does the condition help, and what does another one change?"
    )

    def __post_init__(self) -> None:
        if self.attention_categories and not self.attention:
            raise ValueError(f"attention_categories={self.attention_categories} needs --attention, the rows to draw.")
        if self.attention_texts and (self.attention_categories or not self.attention):
            raise ValueError(
                f"attention_texts={self.attention_texts} needs --attention, the rows to draw, and no "
                "--attention_categories."
            )
        if self.sheet < 0:
            raise ValueError(f"sheet={self.sheet} must be at least 0.")


@dataclass
class ClusterArguments:
    """Where images are embedded and ranks counted."""

    engine: str | None = flag(None, "ray: on the machines of a Ray cluster; by default in this launch's processes")
    address: str | None = flag(None, "of the cluster: auto, or HOST:PORT; this machine alone by default")
    actors: int | None = flag(None, "how many processes work there; as many as there is room for by default")
    cpus_per_actor: int | None = flag(None, "CPUs of each of them; 1 by default")

    def __post_init__(self) -> None:
        self.cluster = cluster_asked(self.engine, self.address, self.actors, self.cpus_per_actor)
        if self.cluster and os.environ.get("WORLD_SIZE", "1") != "1":
            raise ValueError(
                "--engine ray shares the work out by itself. Start evaluate_lrvsf.py with python on one machine of the "
                "cluster, in place of accelerate launch."
            )

    def connected(self, gpu: bool) -> AbstractContextManager[Elsewhere | None]:
        """The cluster, for as long as it is connected; None without one.

        Args:
            gpu: whether each process there takes a GPU, too.
        """
        if self.cluster is None:
            return nullcontext()
        from lrvsf.scale.ray_count import evaluating_on_ray  # here, as Ray need not be installed

        return evaluating_on_ray(self.cluster, gpu)


def read_evaluation(description: str, arguments: list[str]) -> tuple[list[str], Namespace]:
    """The flags of all three classes, and what they ask for: nothing known to be wrong.

    Raises:
        ValueError: a step or flag that there is not, a wrong value.
        OSError: a folder that is not there.
        ImportError: --engine ray without Ray.
    """
    word = arguments[0] if arguments else ""
    if not word.startswith("-") and not Path(word).exists() and (meant := did_you_mean(word, STEPS)):
        raise ValueError(f"there is no step {word!r}.{meant}")  # else the word names a recipe
    usage = "%(prog)s --model MODEL --data_root FOLDER --output_dir FOLDER\n    [--flag value ...]\n"
    usage += f"    %(prog)s {{{','.join(STEPS)}}} --help"
    classes = ((one.__module__, one.__name__) for one in (EvaluateArguments, PictureArguments, ClusterArguments))
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
    ClusterArguments(asked.engine, asked.address, asked.actors, asked.cpus_per_actor)  # refuses what does not fit
    check_model(asked.model)
    check_test_set(asked.data_root)
    for name in ("product_folds", "stored_folds"):
        if (path := getattr(asked, name)) is not None and not Path(path).is_file():
            raise FileNotFoundError(f"--{name}: there is no file {path}{near(Path(path))}")
    check_output(Path(asked.output_dir))
    if asked.embeds is not None:
        check_embeds(asked.embeds, asked.store_dtype)
    check_views(asked.query_views, asked.protocol, asked.conditioning_page)
    if asked.protocol == "bootstrap":
        from lrvsf.data.testset import ProductTestSet  # here, as pyarrow would delay --help and every other mistake

        sizes = GALLERY_SIZES if asked.gallery_sizes is None else asked.gallery_sizes
        check_galleries(sizes, ProductTestSet(asked.data_root).n_distractors)


def check_embeds(embeds: str, dtype: str) -> None:
    """Refuses a Lance table that is not there, or cannot be read, or has another type than is asked for."""
    if not table_of(embeds):
        # Otherwise a misspelt table would be a new folder, and the whole gallery would be embedded into it.
        if embeds.endswith(".lance") or embeds.rpartition("@")[0].endswith(".lance"):
            raise FileNotFoundError(f"--embeds: there is no Lance table {embeds}{near(Path(embeds))}")
        return
    if find_spec("lance") is None:
        raise ImportError('--embeds names a Lance table, which needs Lance: pip install "lrvsf[ray]"')
    if dtype != "float16":
        raise ValueError(f"store_dtype={dtype}, but a Lance table has float16. Leave --store_dtype out")


def check_views(asked: str | None, protocol: str, conditioning_page: bool) -> None:
    """Refuses views that there are not, and those of what is measured with the whole picture alone."""
    if read_views(asked) == ONCE:
        return
    if protocol != "bootstrap":
        raise ValueError(
            f"query_views={asked} has no place in the {protocol} protocol, whose published figures ask with the whole "
            "picture alone. Leave it out, or take --protocol bootstrap with that protocol's --gallery_sizes."
        )
    if conditioning_page:
        raise ValueError(f"query_views={asked}, but --conditioning_page asks with the whole picture; leave one out.")


def check_test_set(root: str) -> None:
    """Refuses a folder without a test set's products, with the folder that may be meant."""
    if not (Path(root) / PRODUCTS).is_file():
        places = (Path(root), Path(root).parent)  # a prepared folder, or one of those within it
        tests = [place / name for place in places for name in ("test", "validation")]
        meant = [str(test) for test in tests if (test / PRODUCTS).is_file()]
        said = f". Did you mean {meant[0]}?" if meant else near(Path(root))
        raise FileNotFoundError(f"{root} has no {PRODUCTS}: give the folder of a test set{said}")
