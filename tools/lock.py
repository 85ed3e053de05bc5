"""Writes what the environments of `make` are made of: make lock

    requirements.lock, constraints.txt            .venv: everything but the pages
    requirements-app.lock, constraints-app.txt    .venv-app: the pages too, and ONNX; gradio holds Pillow below 13

A lock has versions and hashes for every Python and platform that is supported, torch excepted; constraints have the
same versions without hashes, and torch's. torch has another build for each kind of accelerator, under one version and
each with hashes of its own, so it and the libraries that only it asks for are pinned by version.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = ["requirements.txt", "requirements-search.txt", "requirements-dev.txt"]
ENVIRONMENTS = {"": FILES, "-app": [*FILES, "requirements-app.txt", "requirements-onnx.txt"]}
OF_TORCH = re.compile(r"(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z-]+)==")
HEAD = "# Written by `make lock`; `make` installs it with --require-hashes.\n"
CONSTRAINTS = "# Written by `make lock`: the versions of requirements{}.lock, and torch's.\n"


def main(uv: str) -> None:
    options = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"]
    for name, files in ENVIRONMENTS.items():
        made = subprocess.run(
            [uv, "pip", "compile", "--quiet", *options, *files], cwd=ROOT, check=True, capture_output=True
        )
        entries = re.findall(r"^\S.*\n(?:[ \t].*\n)*", made.stdout.decode(), re.MULTILINE)
        (ROOT / f"requirements{name}.lock").write_text(HEAD + "".join(e for e in entries if not OF_TORCH.match(e)))
        pins = [entry.splitlines()[0].removesuffix(" \\") for entry in entries]
        kept = [pin for pin in pins if pin.startswith("torch==") or not OF_TORCH.match(pin)]
        (ROOT / f"constraints{name}.txt").write_text(CONSTRAINTS.format(name) + "\n".join(kept) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
