from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata


class LRVSFashionIT2IRetrieval(AbsTaskRetrieval):
    # The values of K that the benchmark's own code reports, and 100 to keep the length of the lists.
    k_values = (1, 5, 10, 20, 50, 100)

    metadata = TaskMetadata(
        name="LRVSFashionIT2IRetrieval",
        description=(
            "LRVS-F, referred visual search: given a photo of a dressed person and the category of a garment, find the "
            "picture of that very product among the pictures of all products. Each query has one right answer."
        ),
        reference="https://arxiv.org/abs/2306.02928",
        # To be filled in: the repository to which the folder of `publish_lrvsf.py mteb_dataset` was uploaded.
        dataset={
            "path": "OWNER/LRVSFashionIT2IRetrieval",
            "revision": "main",
        },
        type="Any2AnyRetrieval",
        category="it2i",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="recall_at_1",
        date=("2023-06-01", "2023-06-30"),  # when it was published; its pictures are LAION-5B's
        domains=["E-commerce"],
        task_subtypes=["Image Text Retrieval"],
        license="cc-by-nc-4.0",
        annotations_creators="derived",
        dialect=[],
        modalities=["text", "image"],
        sample_creation="found",
        bibtex_citation=r"""
@article{lepage2023lrvsf,
  author = {Lepage, Simon and Mary, J{\'e}r{\'e}mie and Picard, David},
  journal = {arXiv preprint arXiv:2306.02928},
  title = {LRVS-Fashion: Extending Visual Search with Referring Instructions},
  year = {2023},
}
""",
        prompt={"query": "Find the picture of the product of this category that is worn in the photo."},
    )
