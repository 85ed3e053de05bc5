"""What is in a prepared folder, what is damaged, and whether it can be used: what `check` says and `push` asks.

Damage never ends a check: a file without a footer, a page that does not decompress and bytes that are no image are all
found in one go. A quick check reads no images, so it sees damage of files, rows and splits, but not of pixels.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lrvsf.data.folders import files_in
from lrvsf.data.images import USUAL, Tolerance
from lrvsf.data.names import lookalikes, quoted
from lrvsf.data.sharing import SharedPictures
from lrvsf.prepare.inspection import DISTRACTORS, NO_BYTES, QUERIES, SHARD, DamagedFile, RowGroup, inspect, row_groups
from lrvsf.prepare.rows import unjoined_categories
from lrvsf.prepare.workers import worker_map
from lrvsf.prepare.writers import read_manifest
from lrvsf.report import Ledger, as_table, write_report


def check_folders(
    path: Path, quick: bool, tolerance: Tolerance = USUAL, processes: int | None = None, report: Path | None = None
) -> dict[str, Any]:
    """What a prepared folder, or a data folder of some, holds; `report` gets it as JSON, whatever it is.

    Args:
        tolerance: of bad images, as a share.
        processes: how many decode images.

    Raises:
        ValueError: there is nothing prepared, or it cannot be used; the message ends with the report.
    """
    # A quick check reads footers and a few columns, which starting workers would take longer than.
    with worker_map(1 if quick else processes) as mapper:
        parts = [part(folder, quick, mapper, tolerance) for folder, part in prepared_folders(path)]
    _compare(parts, tolerance)
    result: dict[str, Any] = {"path": str(path), "images decoded": "no" if quick else "yes"}
    result |= {part.name: part.report() for part in parts}
    # Before it is refused: a program that reads the report wants to know why.
    if report:
        write_report(report, result)
    if unfit := [part.name for part in parts if part.faults]:
        raise ValueError(f"{path} cannot be used, for what is listed of {', '.join(unfit)}\n{as_table(result)}")
    return result


def prepared_folders(path: Path) -> list[tuple[Path, Callable[..., CheckedFolder]]]:
    """(folder, what reads it) of the folder itself or of the folders in it.

    Raises:
        ValueError: there is nothing prepared in it.
    """
    for folders in ([path], sorted(path.iterdir()) if path.is_dir() else []):
        found = []
        for folder in folders:
            # A data set under way, or what a killed step left.
            if folder.suffix == ".writing":
                continue
            if (folder / "products.parquet").is_file() or (folder / "distractors").is_dir():
                found.append((folder, read_test_set))
            elif files_in(folder, "*.parquet"):
                found.append((folder, read_shards))
        if found:
            return found
    holds = ", ".join(sorted(p.name for p in path.iterdir())[:10]) if path.is_dir() else "no such folder"
    raise ValueError(f"{path} holds neither product shards nor a test set ({holds}); make them with prepare_lrvsf.py")


class CheckedFolder:
    """Product shards or a test set: what was found in all of its files.

    Attributes:
        faults: why it cannot be used.
        notes: what should be known.
        bad: images that cannot be decoded.
        unusable: rows that cannot be used, whatever their images.
        by_category: kind of row -> category -> images.
        pictures: kind of row -> pictures; targets: the SIMPLE ones of the queries.
        owners: queries, distractors -> the numbers of their product ids.
    """

    def __init__(self, name: str, purpose: str) -> None:
        self.name, self.purpose = name, purpose
        self.files: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.images: Counter = Counter()
        self.image_bytes = 0
        self.shorter: Counter[int] = Counter()
        self.longer: Counter[int] = Counter()
        self.bad, self.unusable, self.faults, self.notes = (Ledger() for _ in range(4))
        self.by_category: dict[str, Counter[str | None]] = defaultdict(Counter)
        self.pictures = {kind: SharedPictures() for kind in (SHARD, QUERIES, DISTRACTORS)}
        self.targets = SharedPictures()
        self.owners = {kind: SharedPictures() for kind in (QUERIES, DISTRACTORS)}

    def add(self, kind: str, place: str, found: RowGroup) -> None:
        self.rows[kind] += found.rows
        self.ids.update(found.products)
        self.images += found.images
        for (_, category), count in found.images.items():
            self.by_category[kind][category] += count
        self.image_bytes += found.image_bytes
        self.shorter += found.shorter
        self.longer += found.longer
        # Pictures are kept as numbers of 8 bytes, enough to find the same one in another place.
        for name, numbers in found.pictures:
            self.pictures[kind].add(name, numbers)
            if kind == QUERIES:
                self.targets.add(name, numbers[:1])
        # A distractor is named by its row's number: millions of names would not fit.
        for number in found.owners:
            self.owners[kind].add("", [] if number is None else [number])
        self.bad.merge(found.bad)
        self.unusable.merge(found.unusable)
        if found.damage:
            self.faults.add("row groups that cannot be read to their end", f"{place}: {found.damage}")

    def judge(self, tolerance: Tolerance) -> None:
        """Adds the faults that only the whole shows."""
        self.faults.add_all("products that are there twice", (name for name, count in self.ids.items() if count > 1))
        # Notes, not faults: such distractors lower every model's recall, by as much.
        copies = self.pictures[DISTRACTORS].also_in(self.targets)
        self.notes.add_all("distractors that are the very image of a target", map("row {}".format, copies))
        siblings = self.owners[DISTRACTORS].also_in(self.owners[QUERIES])
        self.notes.add_all("distractors that are pictures of a query's product", map("row {}".format, siblings))
        for what, names, case in (("categories", self.categories(), False), ("product ids", self.ids, True)):
            self.faults.add_all(f"{what} that a reader takes for one", _seen_as_one(names, case))
        # Judged by share, as training and evaluation do: what comes from the web always has some.
        if self.bad.counts.total() > tolerance.fraction * self.images.total():
            for reason in self.bad.counts:
                self.faults.take(
                    f"images that cannot be decoded, more than {100 * tolerance.fraction:g}%", self.bad, reason
                )

    def shown(self) -> SharedPictures:
        """The pictures of products or queries."""
        return self.pictures[SHARD if self.purpose == "trained" else QUERIES]

    def categories(self) -> Counter[str]:
        """How many images each has."""
        found: Counter[str] = Counter()
        for (_, category), count in self.images.items():
            if category is not None:
                found[category] += count
        return found

    def report(self) -> dict[str, Any]:
        types, categories = Counter(), self.categories()
        for (kind, _), count in self.images.items():
            types[str(kind)] += count
        numbers: dict[str, Any] = {"files": dict(self.files), "rows": dict(self.rows), "images": dict(types)}
        numbers |= {"categories": dict(sorted(categories.items())), "image bytes": self.image_bytes}
        if self.shorter:  # empty after a quick check
            numbers |= {"median shorter side": _median(self.shorter), "median longer side": _median(self.longer)}
        if self.purpose == "evaluated":
            numbers |= unjoined_categories(self.by_category[QUERIES], self.by_category[DISTRACTORS])
        numbers |= self.shown().report()
        numbers |= self.notes.examples()
        for title, found in (("images that cannot be decoded", self.bad), ("rows that cannot be used", self.unusable)):
            if found:
                numbers[title] = found.examples()
        numbers[f"can be {self.purpose} on"] = "no" if self.faults else "yes"
        return numbers | ({"because": self.faults.examples()} if self.faults else {})


def read_shards(folder: Path, quick: bool, mapper: Callable, tolerance: Tolerance) -> CheckedFolder:
    """Everything about FOLDER/*.parquet as product shards."""
    part = CheckedFolder(folder.name, "trained")
    files = files_in(folder, "*.parquet")
    digests = {file.name: hashlib.sha256() for file in files}
    rows: Counter[str] = Counter()
    for file, found in _inspect_all(SHARD, files, quick, mapper, part):
        # Row groups come in their order, whichever worker read them: the digest is that of the file's rows in order.
        digests[file.name].update(found.digests)
        rows[file.name] += found.rows
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        part.faults.add("a damaged manifest", str(error))
        manifest = None
    if manifest:
        listed = {entry["name"]: entry for entry in manifest.get("files", ())}
        part.faults.add_all("files of the manifest that are missing", sorted(listed.keys() - digests.keys()))
        part.faults.add_all("files that the manifest does not name", sorted(digests.keys() - listed.keys()))
        for name in sorted(listed.keys() & digests.keys()):
            if rows[name] != listed[name]["rows"]:
                part.faults.add("files with more or fewer rows than the manifest says", name)
            elif not quick and digests[name].hexdigest() != listed[name]["digest"]:
                part.faults.add("files with other rows than the manifest says", name)
    # Never tolerated, whatever the share: a reader that follows paths would open whatever they name.
    part.faults.take("images without bytes", part.bad, NO_BYTES)
    if part.unusable.counts.total() == part.rows[SHARD]:
        part.faults.add("no product that gives a pair", folder.name)
    part.judge(tolerance)
    return part


def read_test_set(folder: Path, quick: bool, mapper: Callable, tolerance: Tolerance) -> CheckedFolder:
    """Everything about FOLDER/products.parquet and FOLDER/distractors/*.parquet."""
    part = CheckedFolder(folder.name, "evaluated")
    products, distractors = folder / "products.parquet", files_in(folder / "distractors", "*.parquet")
    for kind, files in ((QUERIES, [products] if products.is_file() else []), (DISTRACTORS, distractors)):
        for _ in _inspect_all(kind, files, quick, mapper, part):
            pass
        if not part.rows[kind]:
            part.faults.add(f"no {kind}", folder.name)
    for reason in part.unusable.counts:
        part.faults.take(f"queries with {reason}", part.unusable, reason)
    part.judge(tolerance)
    return part


def _inspect_all(
    kind: str, files: list[Path], quick: bool, mapper: Callable, part: CheckedFolder
) -> Iterator[tuple[Path, RowGroup]]:
    """Adds what the files hold to the part, and yields it by row group, in order."""
    jobs = []
    for file in files:
        part.files[kind] += 1
        try:
            jobs += [(kind, file, group, quick) for group in range(row_groups(kind, file))]
        except DamagedFile as error:
            part.faults.add(error.reason, f"{file.name}: {error}")
    # A row group is a job: it is read page by page, so a worker's memory does not grow with the file.
    results = mapper(inspect, *zip(*jobs, strict=True)) if jobs else ()
    progress = tqdm(results, total=len(jobs), desc=f"{part.name}, {kind}", unit="row group")
    for (_, file, group, _), found in zip(jobs, progress, strict=True):
        part.add(kind, f"{file.name}, row group {group}", found)
        yield file, found


def _compare(parts: list[CheckedFolder], tolerance: Tolerance) -> None:
    """A product of two parts, by its id or by its picture, makes the one that is evaluated on worthless.

    So does a category that only looks like one of the other.
    """
    for first, second in combinations(parts, 2):
        # What is evaluated on is at fault, not what is trained on: it is the smaller one to make again.
        judged, other = (first, second) if second.purpose == "trained" else (second, first)
        # What is wrong within one of the two is reported there, so only what the other one brings is listed here.
        inner = _seen_as_one(first.categories()) + _seen_as_one(second.categories())
        seen_as_one = [group for group in _seen_as_one(first.categories() + second.categories()) if group not in inner]
        judged.faults.add_all(f"categories that a reader takes for one of {other.name}", seen_as_one)
        common = sorted(first.ids.keys() & second.ids.keys())
        judged.faults.add_all(f"products that are also in {other.name}", common)
        shown = judged.shown()
        leaked = [shown.products[number] for number in shown.also_in(other.shown())]
        title = f"products with a picture that is also in {other.name}"
        if len(leaked) > tolerance.fraction * len(shown.products):
            judged.faults.add_all(f"{title}, more than {100 * tolerance.fraction:g}%", leaked)
        else:
            judged.notes.add_all(title, leaked)


def _seen_as_one(names: Iterable[str], case: bool = False) -> list[str]:
    return [" and ".join(map(quoted, group)) for group in lookalikes(names, case)]


def _median(counts: Counter[int]) -> int:
    """The lower median of numbers that are counted, not listed."""
    # At most `images.MAX_SIDE` different values, of however many images.
    below = 0
    for value in sorted(counts):
        below += counts[value]
        if 2 * below >= counts.total():
            return value
    raise ValueError("no numbers, no median")
