"""`prepare_lrvsf.py download`: URL lists -> images, with img2dataset, in rounds.

img2dataset never asks again for what failed in a finished file, so each round after the first has a list of its own:
what failed in the round before and may yet arrive. That list follows from the outcomes alone; a run that was killed
makes it again.

    OUT/round-1/00000.parquet ...   the images; OUT holds no other Parquet files, so `products` can read all of it
    OUT/failures.csv                every URL that did not arrive: when it was last tried, why
    OUT/hosts.csv                   URLs by host and outcome
    OUT.unfinished/                 the round under way; gone at the end
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
from typer import Argument, Option

from lrvsf.data.parquet import open_parquet
from lrvsf.durable import check_one_disk, locked, publish_folder, whole_file
from lrvsf.prepare.laion.img2dataset import VERSION, ensure_environment, run_img2dataset
from lrvsf.prepare.laion.outcomes import ARRIVED, FINAL, host, outcomes, shard_sizes
from lrvsf.prepare.laion.url_lists import PLACE, is_web, list_files, write_list
from lrvsf.prepare.row_writer import NumberedFiles
from lrvsf.report import write_report

ENVIRONMENT = Path("~/.cache/lrvsf") / f"img2dataset-{VERSION}"
FAILURE_COLUMNS = ("url", "product_id", "type", "split", "round", "reason", "error")
HOST_COLUMNS = ("host", "outcome", "urls")
TOP_HOSTS = 20


def download(
    urls: Annotated[Path, Argument(help="folder that `urls` wrote, or one with URL lists")],
    out: Annotated[Path, Argument(help="folder to write: round-1/, round-2/, ..., failures.csv, hosts.csv")],
    rounds: Annotated[
        int,
        Option(
            min=1,
            help="rounds over the URLs; from the second on only over what failed, except HTTP 404 and 410, "
            "opted-out images, and what is no URL",
        ),
    ] = 3,
    image_size: Annotated[
        int, Option(min=1, help="pixels of the shortest side; smaller images stay as they are")
    ] = 256,
    processes: Annotated[int, Option(min=1, help="processes that download")] = os.cpu_count() or 1,
    threads: Annotated[int, Option(min=1, help="downloads at a time in each process")] = 64,
    timeout: Annotated[int, Option(min=1, help="seconds to wait for a server's next bytes")] = 10,
    retries: Annotated[int, Option(min=0, help="further tries at once, within a round")] = 1,
    file_rows: Annotated[int, Option(min=1, help="URLs per output file")] = 10_000,
    environment: Annotated[
        Path, Option(envvar="LRVSF_IMG2DATASET", help=f"virtual environment of img2dataset {VERSION}; made if missing")
    ] = ENVIRONMENT,
) -> dict[str, Any]:
    """Download images with img2dataset, then again what failed. Run it again to go on, or with more rounds.

    Images whose server says X-Robots-Tag: noai, noimageai, noindex or noimageindex are not kept and not asked for
    again.
    """
    lists, out = list_files(urls), out.resolve()
    if not sum(shard_sizes(lists, file_rows)):
        raise ValueError(f"the lists in {urls} hold no URL; run the step `urls` again and look at its report")
    with locked(out, "prepare_lrvsf.py download"):
        _claim(out, lists, image_size, file_rows)
        python = ensure_environment(environment.expanduser())
        pace = {"processes_count": processes, "thread_count": threads, "timeout": timeout, "retries": retries}
        settings = {**_settings(image_size, file_rows), **pace}
        work = out.with_name(out.name + ".unfinished")
        check_one_disk(work, out)
        with csv_file(out / "failures.csv", FAILURE_COLUMNS) as failures:
            counts, number = UrlCounts(failures), 1
            while lists:
                folder = out / f"round-{number}"
                if not folder.is_dir():
                    _fetch(lists, folder, work / folder.name, python, settings)
                # A later round that is there already was asked for by an earlier run with more --rounds.
                again = number < rounds or (out / f"round-{number + 1}").is_dir()
                # The next round's list follows from the outcomes alone, so a killed run makes the same one again.
                retry_folder = work / f"list-{number + 1}"
                with write_list(retry_folder) as retry:
                    counts.add_round(number, outcomes(lists, folder, file_rows), retry if again else None)
                lists = list_files(retry_folder) if retry.rows else []
                number += 1
        counts.write_hosts(out / "hosts.csv")
        shutil.rmtree(work)  # what it held are lists, which follow from the outcomes
        report = {"folder": str(out), **counts.report()}
        write_report(out / "download.json", report)
    return report


def _fetch(lists: list[Path], folder: Path, unfinished: Path, python: Path, settings: dict[str, Any]) -> None:
    """One round: img2dataset writes into `unfinished`, which becomes `folder` when it is whole."""
    columns = settings["save_additional_columns"]
    if PLACE in pq.read_schema(lists[0]).names:
        columns = [*columns, PLACE]
    settings = settings | {"save_additional_columns": columns}
    here = settings | {"url_list": str(lists[0].parent), "output_folder": str(unfinished)}
    sizes = shard_sizes(lists, settings["number_sample_per_shard"])
    run_img2dataset(python, here, sizes, folder.with_suffix(".log"), folder.name.replace("-", " "))
    publish_folder(unfinished, folder)


@dataclass
class UrlCounts:
    """What became of URLs in the end, each counted once over all rounds.

    Attributes:
        failures: what writes down a URL that did not arrive.
        tried, arrived: round -> URLs.
        outcomes: (host, outcome) -> URLs.
        splits: (split, whether arrived) -> URLs.
    """

    failures: Callable[[dict[str, Any]], None]
    tried: Counter[int] = field(default_factory=Counter)
    arrived: Counter[int] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    splits: Counter[tuple[str, bool]] = field(default_factory=Counter)

    def add_round(self, number: int, rows: Iterable[dict[str, Any]], retry: NumberedFiles | None) -> None:
        """Counts rows of a URL list, with `reason` and `error`; what may yet arrive goes into the next round's list."""
        for row in rows:
            outcome, error = row.pop("reason"), row.pop("error")
            self.tried[number] += 1
            # Counted in its last round alone, so that each URL is counted once.
            if retry is not None and outcome not in FINAL:
                retry.add(row)
                continue
            self.outcomes[host(row["url"]), outcome] += 1
            self.splits[row["split"], outcome == ARRIVED] += 1
            if outcome == ARRIVED:
                self.arrived[number] += 1
            else:
                self.failures({**row, "round": number, "reason": outcome, "error": error})

    def write_hosts(self, path: Path) -> None:
        with csv_file(path, HOST_COLUMNS) as write:
            for (name, outcome), count in sorted(self.outcomes.items()):
                write({"host": name, "outcome": outcome, "urls": count})

    def report(self) -> dict[str, Any]:
        """The step's report: totals, rounds, splits, failures by reason and by host."""
        reasons, tried, failed = Counter(), Counter(), Counter()
        for (name, outcome), count in self.outcomes.items():
            tried[name] += count
            if outcome != ARRIVED:
                reasons[outcome] += count
                failed[name] += count
        total, arrived = self.outcomes.total(), self.arrived.total()
        worst = sorted(failed, key=lambda name: (-failed[name], name))[:TOP_HOSTS]
        return {
            "URLs": total,
            "arrived": arrived,
            "arrived in %": 100 * arrived / total,
            "rounds": {str(n): {"tried": self.tried[n], "arrived": self.arrived[n]} for n in sorted(self.tried)},
            "splits": {
                split: {
                    "URLs": self.splits[split, True] + self.splits[split, False],
                    "arrived": self.splits[split, True],
                }
                for split in sorted({split for split, _ in self.splits})
            },
            "failed, by reason": dict(reasons.most_common()) or 0,
            f"failed, by host (the {TOP_HOSTS} with most; all are in hosts.csv)": {
                name: f"{failed[name]:,} of {tried[name]:,}" for name in worst
            }
            or 0,
        }


@contextmanager
def csv_file(path: Path, columns: Iterable[str]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Gives what writes a row to a CSV file, which is there when the block has ended well."""
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        yield lambda row: writer.writerow({name: _no_formula(cell) for name, cell in row.items()})


def _no_formula(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: '=... as they write it themselves. The words are of others."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _settings(image_size: int, file_rows: int) -> dict[str, Any]:
    """img2dataset's arguments that decide what is written."""
    return {
        "image_size": image_size,
        "resize_mode": "keep_ratio",  # image_size is then the shortest side
        "resize_only_if_bigger": True,
        "encode_format": "jpg",
        "encode_quality": 95,
        "skip_reencode": True,  # a JPEG that is small enough keeps its bytes: a second compression only loses
        "compute_hash": "sha256",
        "extract_exif": False,
        "input_format": "parquet",
        "output_format": "parquet",
        "save_additional_columns": ["product_id", "type", "split", "category", "captions"],
        "number_sample_per_shard": file_rows,
        "incremental_mode": "incremental",
        # disallowed_header_directives is left alone: img2dataset's default honours the four that the help names.
    }


def _claim(out: Path, lists: list[Path], image_size: int, file_rows: int) -> None:
    """Notes what OUT is made from, and refuses to go on in it with something else.

    Files of img2dataset are numbered, and rows in them too: with other lists the numbers would mean other URLs.
    """
    # Of what the lists say, not of their bytes: `urls` run again by another version of pyarrow gives the same.
    digest = hashlib.sha256()
    for text in _texts(lists):
        digest.update(text.encode(errors="surrogatepass") + b"\n")
    source = {"urls": digest.hexdigest(), "image_size": image_size, "file_rows": file_rows}
    path = out / "source.json"
    if not path.exists():  # the first run in this folder
        write_report(path, source)
    known = json.loads(path.read_text())
    if changed := [name for name in source if known.get(name) != source[name]]:
        raise ValueError(
            f"{out} was begun with another {', '.join(changed)} ({', '.join(str(known.get(n)) for n in changed)}, now "
            f"{', '.join(str(source[n]) for n in changed)}); use the same again, or another folder"
        )


def _texts(lists: list[Path]) -> Iterator[str]:
    """What makes a list this list: its URLs with their products and splits, and where a file ends."""
    for file in lists:
        with open_parquet(file) as parquet:
            table = parquet.read(["url", "product_id", "split"])
        if foreign := [url for url in table["url"].to_pylist() if not is_web(url)]:
            raise ValueError(
                f"{file} has {len(foreign):,} URLs of no web server, such as {foreign[0]!r}; file:// would take a file "
                "of this machine. Write the list with the step `urls`, which leaves them out"
            )
        for columns in zip(*(column.to_pylist() for column in table.columns), strict=True):
            yield repr(columns)
        yield "end of file"
