"""img2dataset in a virtual environment of its own: made on first use, run as a process, ended with us.

It is kept apart because it needs pandas<3 and albumentations<2 and brings its own OpenCV, while our side is tested on
newer ones. img2dataset writes under final names at once, and marks a file as done with a `_stats.json` next to it; so
what it writes is no result until all files are marked, and a run that was killed goes on with the unmarked ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tqdm import tqdm

from lrvsf.data.parquet import DAMAGE

VERSION = "1.47.0"
# What img2dataset calls directly, as tried together: its own bounds are open at the top.
PINS = (
    f"img2dataset=={VERSION}",
    "albumentations==1.4.24",
    "albucore==0.0.23",
    "opencv-python-headless==4.14.0.94",
    "numpy==2.4.6",
    "pandas==2.3.3",
    "pyarrow==26.0.1",
    "fsspec==2026.9.0",
    "webdataset==0.2.111",
    "wandb==0.31.0",
    "fire==0.7.1",
    "exifread-nocycle==3.0.1",
    "tqdm==4.70.1",
    "standard-imghdr==3.13.0; python_version >= '3.13'",  # img2dataset imports imghdr, which Python 3.13 dropped
)
MARK = "made-by-lrvsf.txt"

RUNNER = Path(__file__).with_name("img2dataset_runner.py")


def ensure_environment(folder: Path) -> Path:
    """The Python of a virtual environment that has img2dataset, which is made if it is not there.

    Raises:
        ValueError: the folder holds something else.
        OSError: pip failed.
    """
    python = folder / "bin/python"
    if _installed(python):
        return python
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise ValueError(
            f"{folder} is not empty and has no img2dataset {VERSION}; name another folder with --environment, "
            "so that nothing of yours is changed"
        )
    folder.mkdir(parents=True, exist_ok=True)
    # Before anything else, so that an installation that was interrupted is known as ours and done again.
    (folder / MARK).write_text("\n".join(PINS) + "\n")
    print(f"installing img2dataset {VERSION} into {folder} (once, under a minute)", file=sys.stderr)
    _call([sys.executable, "-m", "venv", str(folder)])
    _call([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINS])
    if not _installed(python):
        raise OSError(f"pip reported success, but {python} has no img2dataset {VERSION}; delete {folder} and try again")
    return python


def run_img2dataset(python: Path, settings: dict[str, Any], sizes: list[int], log: Path, label: str) -> None:
    """Runs img2dataset until every output file is there; files of an earlier, killed run count.

    Args:
        python: of the environment.
        settings: arguments of img2dataset's `download`; `output_folder` is where it writes.
        sizes: rows of each output file.
        log: what img2dataset prints is appended to it.
        label: for the progress bar.

    Raises:
        OSError: some files did not come about.
    """
    folder = Path(settings["output_folder"])
    folder.mkdir(parents=True, exist_ok=True)
    _unmark_damaged(folder)
    if not _undone(folder, sizes):
        return
    with log.open("ab") as output, tqdm(total=sum(sizes), unit="url", desc=label, mininterval=1) as bar:
        process = subprocess.Popen(
            # -I: no PYTHONPATH, nothing of the current folder.
            [str(python), "-I", str(RUNNER), json.dumps(settings)],
            stdin=subprocess.PIPE,  # which closes when this process ends, however: see `end_with_parent`
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours; its processes are ended as one group
            # albumentations asks the network for its newest version at every import otherwise.
            env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"},
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)  # seconds, not tuned
                bar.update(sum(sizes) - sum(sizes[i] for i in _undone(folder, sizes)) - bar.n)
        finally:
            process.stdin.close()
            process.wait()
    _unmark_damaged(folder)
    if undone := _undone(folder, sizes):
        raise OSError(
            f"img2dataset ended with exit code {process.returncode} and left {len(undone)} of {len(sizes)} files "
            f"undone, the first one number {undone[0]}. Run the same command again to go on. The end of {log}:\n"
            + "\n".join(log.read_text(errors="replace").splitlines()[-10:])
        )


def _undone(folder: Path, sizes: list[int]) -> list[int]:
    """Numbers of the output files that img2dataset has not marked as done."""
    done = {path.name.split("_")[0] for path in folder.glob("*_stats.json")}
    return [number for number in range(len(sizes)) if f"{number:05d}" not in done]


def _unmark_damaged(folder: Path) -> None:
    """Unmarks files that a crash or a full disk cut short, so that they are fetched again."""
    for mark in folder.glob("*_stats.json"):
        try:
            pq.read_metadata(folder / mark.name.replace("_stats.json", ".parquet"))
        except DAMAGE:
            mark.unlink()


def _installed(python: Path) -> bool:
    """Whether this Python has our version. pip installs it last, after what it needs, so it means completeness."""
    if not python.is_file():
        return False
    question = "import importlib.metadata as m; print(m.version('img2dataset'))"
    answer = subprocess.run([str(python), "-I", "-c", question], capture_output=True, text=True)
    return answer.stdout.strip() == VERSION


def _call(command: list[str]) -> None:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise OSError(
            f"{' '.join(command)}\nended with exit code {result.returncode}:\n{result.stdout[-2000:]}\n"
            f"Install img2dataset=={VERSION} into a virtual environment by hand and name it with --environment."
        )
