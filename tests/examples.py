"""The Python blocks of pages, and of what the library writes, as tests run them.

A test claims the blocks that it runs by `examples("docs/using.md", "Using a model", 1)`, in literals:
`tests/test_docs.py` reads the claims out of the tests' source and fails where a page has a block that none claims.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks_of(text):
    """The Python blocks of a page's text, each with the heading above it: [(heading, code), ...]."""
    heading, found = "", []
    # A fence is taken whole, as comments within one look like headings.
    for kind, code, title in re.findall(r"^```(\w*)\n(.*?)^```|^#+ ([^\n]*)", text, re.MULTILINE | re.DOTALL):
        heading = title or heading
        if kind == "python":
            found.append((heading, code))
    return found


def examples(page, heading, count):
    """The code of the `count` blocks that a page of the repository has right under a heading."""
    found = [code for above, code in blocks_of((ROOT / page).read_text("utf-8")) if above == heading]
    assert len(found) == count, f"{page}, {heading!r}: {len(found)} Python blocks, and the tests run {count}"
    return found


def replaced(code, names):
    """The code with other names of files, repositories or numbers in it: {old: new}. Each old one has to be there."""
    for name in names:
        assert name in code, f"{name!r} is no longer in the example:\n{code}"
    return re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], code)


def run_script(code, folder, *path):
    """What the code prints, saved as a script in a folder and started there, by a process without network.

    `path` are the folders that it imports from besides its own, as if what they hold were installed.
    """
    (folder / "example.py").write_text(code)
    names = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=folder, env={**os.environ, **names}, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run_each(blocks, folder, *names):
    """What each of some blocks prints, and its tensors of these names, as lists.

    One process, a script's, runs them all, which spares the imports; each has names of its own.
    """
    script = f"""
import contextlib, io, json
made = []
for code in {blocks!r}:
    names = {{}}
    with contextlib.redirect_stdout(io.StringIO()) as told:
        exec(code, names)
    made.append([told.getvalue(), {{name: names[name].tolist() for name in {names!r} if name in names}}])
print(json.dumps(made))
"""
    return json.loads(run_script(script, folder))
