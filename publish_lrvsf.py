"""Takes models across the border: published checkpoints in, finished models and their results out to the Hub.

python publish_lrvsf.py STEP --help
"""

from __future__ import annotations

from lrvsf import command
from lrvsf.hub.convert_checkpoint import convert
from lrvsf.hub.graphs.write_onnx import onnx
from lrvsf.hub.leaderboard import leaderboard
from lrvsf.hub.mteb_dataset import mteb_dataset
from lrvsf.hub.mteb_result import mteb_result
from lrvsf.hub.push_model import push
from lrvsf.hub.write_handler import handler
from lrvsf.steps import run_step, step_name

STEPS = (convert, push, handler, onnx, leaderboard, mteb_dataset, mteb_result)


def main(arguments: list[str] | None = None) -> None:
    run_step(__doc__, STEPS, arguments)


if __name__ == "__main__":
    command.run(main, step_name())
