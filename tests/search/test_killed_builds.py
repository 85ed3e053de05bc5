"""search_catalog.py killed at each of its steps: it goes on from there, and readers never see half of anything."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from made import squares, tiny_condvit, write_file

from lrvsf.search.catalog import Catalog
from lrvsf.search.generations import Generations

PICTURES = 20  # in 3 shards; two of them are bad


@pytest.fixture(scope="module")
def builds():
    """The process that builds are forks of."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(Path(__file__).with_name("catalogs.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        yield process
        process.stdin.close()  # it ends


@pytest.fixture
def run(builds, tmp_path):
    """`run(*words, fault="none", at=0)`: whether the step ended, and how many pictures it embedded."""

    def run(*words, fault="none", at=0):
        log = tmp_path / "log"
        builds.stdin.write(json.dumps([str(log), 1, fault, at, list(map(str, words))]) + "\n")
        builds.stdin.flush()
        (status,) = json.loads(builds.stdout.readline())
        said = log.with_suffix(".said").read_text()
        log.with_suffix(".said").unlink()
        assert status in (0, -signal.SIGKILL), said[-3000:]
        sizes = Path(f"{log}.0")
        embedded = sum(map(int, sizes.read_text().split())) if sizes.exists() else 0
        sizes.unlink(missing_ok=True)
        return status == 0, embedded

    return run


@pytest.fixture
def pictures(tmp_path):
    """A model, a folder of pictures, and one of further ones."""
    tiny_condvit().save_pretrained(tmp_path / "model")
    for number in range(PICTURES):
        data = squares(number) if number not in (3, 12) else b"<html>"
        write_file(tmp_path / f"pictures/{number:02d}.jpg", data)
    for number in range(6):
        write_file(tmp_path / f"more/new {number}.jpg", squares(100 + number))
    return tmp_path


def contents(folder):
    """Everything in a catalog but times; and not the lock's file, which a killed run may leave."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock" and "building" not in path.parts:
            data = path.read_bytes()
            if path.name == "manifest.json":
                data = {key: value for key, value in json.loads(data).items() if key != "made"}
            found[path.relative_to(folder).as_posix()] = data
    return found


@pytest.mark.survives(
    "SIGKILL while a catalog is made, at any file or folder",
    "goes on from there; the same bytes; readers see all or none",
)
@pytest.mark.parametrize(("fault", "at"), [("unnamed", 3), ("named", 2), ("batch", 4)])
def test_a_killed_build_goes_on(run, pictures, fault, at):
    index = ["index", pictures / "model", pictures / "pictures"]
    flags = ["--batch_size", "3", "--max_bad_fraction", "0.2"]
    ended, embedded = run(*index, pictures / "whole", *flags)
    assert ended and embedded == PICTURES - 2
    killed, total = pictures / "killed", 0
    for _ in range(12):  # each time it gets a step further
        ended, embedded = run(*index, killed, *flags, fault=fault, at=at)
        total += embedded
        if ended:
            break
        if not (killed / "CURRENT").exists():
            with pytest.raises(FileNotFoundError, match="no generation yet|is no catalog"):
                Catalog.open(killed)
    assert ended and contents(killed) == contents(pictures / "whole")
    assert total <= PICTURES - 2 + 8 * 3  # a death costs at most the shard that it interrupts
    assert run(*index, killed, *flags) == (True, 0) and contents(killed) == contents(pictures / "whole")


@pytest.mark.survives(
    "SIGKILL while a changed shop is indexed again", "goes on; the same bytes; pictures that are known are not embedded"
)
@pytest.mark.parametrize(("fault", "at"), [("unnamed", 3), ("named", 2), ("batch", 4)])
def test_a_killed_build_that_reuses_embeddings_goes_on(run, pictures, fault, at):
    index, flags = ["index", pictures / "model", pictures / "pictures"], ["--max_bad_fraction", "0.2"]
    for folder in ("whole", "killed"):
        assert run(*index, pictures / folder, *flags)[0]
    for number in range(6):
        write_file(pictures / f"pictures/{3 * number:02d} new.jpg", squares(100 + number))
    again = [*flags, "--batch_size", "3", "--switch"]
    assert run(*index, pictures / "whole", *again) == (True, 6)
    killed, total = pictures / "killed", 0
    for _ in range(12):
        ended, embedded = run(*index, killed, *again, fault=fault, at=at)
        total += embedded
        assert len(Catalog.open(killed)) in (PICTURES - 2, PICTURES - 2 + 6)
        if ended:
            break
    assert ended and contents(killed) == contents(pictures / "whole") and total <= 6 * 4


@pytest.mark.survives(
    "SIGKILL while pictures are added to a catalog", "the generation before answers until the new one is whole"
)
def test_a_killed_add_goes_on_beside_the_generation_that_answers(run, pictures):
    folder, flags = pictures / "catalog", ["--max_bad_fraction", "0.2"]
    assert run("index", pictures / "model", pictures / "pictures", folder, *flags)[0]
    before = Generations(folder).answering().name
    for _ in range(6):
        ended, _ = run("add", pictures / "more", folder, fault="unnamed", at=3)
        catalog = Catalog.open(folder)
        (hit,) = catalog.search(squares(100), k=1)
        assert (hit.id == "new 0.jpg") == ended == (catalog.generation.name != before)
        if ended:
            break
    assert ended and len(catalog) == PICTURES - 2 + 6


@pytest.mark.survives("SIGKILL while a catalog is compacted", "it answers as before; the next one frees what is left")
def test_a_killed_compact_leaves_a_catalog_that_answers(run, pictures):
    folder, flags = pictures / "catalog", ["--max_bad_fraction", "0.2"]
    assert run("index", pictures / "model", pictures / "pictures", folder, *flags)[0]
    assert run("add", pictures / "more", folder)[0] and run("remove", folder, "00.jpg")[0]
    for _ in range(6):
        ended, _ = run("compact", folder, "--drop_previous", fault="unnamed", at=3)
        catalog = Catalog.open(folder)
        assert len(catalog) == PICTURES - 2 + 6 - 1
        assert catalog.search(squares(101), k=1)[0].id == "new 1.jpg"
        if ended:
            break
    assert ended and len(Generations(folder).names()) == 1
    assert len(list((folder / "segments").iterdir())) == 1 and len(catalog.generation.removed) == 0


STEPS = ["index MODEL few OUT", "add more OUT", "remove OUT 5.jpg", "compact OUT --drop_previous"]


@pytest.mark.survives(
    "SIGKILL before any one file or folder of a catalog gets its name, in index, add, remove and compact",
    "what answered before answers; the same command then ends with the same bytes",
)
@pytest.mark.parametrize("count", range(1, len(STEPS) + 1), ids=[step.split()[0] for step in STEPS])
def test_killed_before_any_name(run, pictures, count):
    for number in range(7):
        write_file(pictures / f"few/{number}.jpg", squares(number))

    def words(step, out):
        folders = {"MODEL": pictures / "model", "few": pictures / "few", "more": pictures / "more", "OUT": out}
        return [folders.get(word, word) for word in step.split()]

    before, whole = pictures / "before", pictures / "whole"
    *earlier, step = STEPS[:count]
    for one in earlier:
        assert run(*words(one, before))[0]
    if earlier:
        shutil.copytree(before, whole)
    assert run(*words(step, whole))[0]
    for at in itertools.count(1):
        killed = pictures / f"killed {at}"
        if earlier:
            shutil.copytree(before, killed)
        if run(*words(step, killed), fault="unnamed", at=at)[0]:
            break
        if earlier:
            assert Catalog.open(killed).generation.name == Catalog.open(before).generation.name
        else:
            assert Generations(killed).current() is None
        assert run(*words(step, killed))[0]
        assert contents(killed) == contents(whole)
    assert at > 2, "it died"
