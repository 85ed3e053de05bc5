"""Bootstrapped recall at K, as an `evaluate` module; `lrvsf.evaluation.recall` does the counting.

`evaluate` copies this file alone into its cache and imports it there. So the core is neither next to it nor copied: it
comes from the installed package. The import is inside a `try`, where evaluate's own scan for requirements does not see
it, because that scan would advise `pip install lrvsf` and not say from where.
"""

from collections.abc import Sequence

import datasets
import evaluate
import torch

try:
    from lrvsf.evaluation.recall import bootstrap_recall
    from lrvsf.evaluation.results import KS
except ImportError as error:
    raise ImportError(
        f"lrvsf_recall counts with the package `lrvsf`, which cannot be imported here: {error}. It comes with this "
        "module's repository: run `pip install .` in its checkout, or start Python there."
    ) from error

DESCRIPTION = """
Recall at K of referred image search: the share of queries whose target is among the K nearest of a gallery, mean and
sample standard deviation over folds of products and distractors that are drawn with replacement. Exact, by counting
ranks; ties count half.
"""
INPUTS = """
Args:
    predictions: (P, dim) query embeddings, finite unit rows.
    references: (P, dim) target embeddings, finite unit rows; row i is what query i looks for.
    distractor_embeds: (N, dim) the gallery's other items, finite unit rows. Default: none, the targets alone.
    product_folds: (F, draws) row numbers of products, repeats allowed. Default: one fold, each product once.
    distractor_folds: (F, size) row numbers of distractors, repeats allowed. Default: in every fold each one once.
    ks: the K of interest, each at least 1.

Returns:
    "recall_at_K" for each K, between 0 and 1, and "recall_at_K_std", which is 0 when there is one fold.

Raises:
    ValueError: rows that are not finite or not of length 1, shapes that do not fit, a K below 1.
    IndexError: a row number out of range.

Example:
    >>> recall = evaluate.load("metrics/lrvsf_recall")
    >>> queries, others = [[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.6]]
    >>> recall.compute(predictions=queries, references=[[1.0, 0.0], [0.6, 0.8]], distractor_embeds=others, ks=[1])
    {'recall_at_1': 1.0, 'recall_at_1_std': 0.0}
"""
CITATION = """
@article{lepage2023lrvsf,
  title={LRVS-Fashion: Extending Visual Search with Referring Instructions},
  author={Lepage, Simon and Mary, J{\\'e}r{\\'e}mie and Picard, David},
  journal={arXiv:2306.02928},
  year={2023}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class LrvsfRecall(evaluate.Metric):
    """`evaluate.load("metrics/lrvsf_recall")`."""

    def _info(self) -> evaluate.MetricInfo:
        row = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": row, "references": row}),
            reference_urls=["https://arxiv.org/abs/2306.02928"],
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[Sequence[float]],
        distractor_embeds: torch.Tensor | None = None,
        product_folds: torch.Tensor | None = None,
        distractor_folds: torch.Tensor | None = None,
        ks: Sequence[int] = KS,
    ) -> dict[str, float]:
        if not ks or min(ks) < 1:
            raise ValueError(f"ks={list(ks)}: give one or more numbers, each at least 1.")
        queries = torch.tensor(predictions)
        none = queries.new_empty(0, queries.shape[-1])
        distractors = none if distractor_embeds is None else torch.as_tensor(distractor_embeds)
        products = torch.arange(len(predictions))[None] if product_folds is None else torch.as_tensor(product_folds)
        if distractor_folds is None:
            distractor_folds = torch.arange(len(distractors)).expand(len(products), -1)
        mean, std = bootstrap_recall(
            queries,
            torch.tensor(references),
            distractors,
            products,
            torch.as_tensor(distractor_folds),
            max_k=max(ks),
        )
        values = {k: (mean[k - 1].item(), std[k - 1].item()) for k in ks}
        return {f"recall_at_{k}{end}": value for k in ks for end, value in zip(("", "_std"), values[k], strict=True)}
