"""What the project may be installed with: bounded on both sides, and one lock in which everything has its hash."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ["requirements.txt", "requirements-dev.txt", "requirements-gpu.txt", "requirements-search.txt"]
REQUIREMENTS += ["requirements-ray.txt", "requirements-databases.txt", "requirements-onnx.txt", "requirements-mteb.txt"]


def lines(name):
    return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]


def locked():
    """{(name, marker): (version, number of hashes)} of requirements.lock."""
    entries = re.findall(r"^(\S+)==(\S+)(.*)\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)*)", text(), re.MULTILINE)
    return {(name, rest.strip(" \\")): (version, hashes.count("sha256:")) for name, version, rest, hashes in entries}


def text():
    return (ROOT / "requirements.lock").read_text()


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_requirement_has_an_upper_bound(name):
    for line in lines(name):
        operators = {specifier.operator for specifier in Requirement(line).specifier}
        assert operators & {"<", "=="}, f"{line}: what comes next year is not tested"


def test_the_lock_has_a_hash_for_each_version_and_no_address():
    assert len(locked()) == text().count("==") - text().count("== '") > 50
    for (name, _), (version, hashes) in locked().items():
        assert hashes, f"{name} {version}"
    assert "://" not in text() and "--find-links" not in text() and "@ " not in text()


def test_the_lock_meets_the_requirements_and_the_constraints_are_it():
    versions = {}
    for (name, _), (version, _) in locked().items():
        versions.setdefault(name, []).append(version)
    for line in (line for name in REQUIREMENTS[:2] for line in lines(name)):
        requirement = Requirement(line)
        if requirement.name != "torch":
            found = versions.get(canonicalize_name(requirement.name), [])
            assert found and all(version in requirement.specifier for version in found), f"{line}: run `make lock`"
    pins = {(pin.name, str(pin.marker or "")): str(pin.specifier) for pin in map(Requirement, lines("constraints.txt"))}
    assert pins.pop(("torch", "")).startswith("==")
    assert {
        (n, str(Requirement(f"a ; {m[2:]}").marker) if m else ""): f"=={v[0]}" for (n, m), v in locked().items()
    } == {(name, marker): version for (name, marker), version in pins.items()}


def test_the_oldest_versions_are_the_lower_bounds():
    oldest = {pin.name: pin.specifier for pin in map(Requirement, lines("constraints-oldest.txt"))}
    for requirement in map(Requirement, lines("requirements.txt")):
        (lower,) = (one.version for one in requirement.specifier if one.operator == ">=")
        if requirement.name != "torch":  # see constraints-oldest.txt
            pin = str(oldest[requirement.name]).removeprefix("==").removesuffix(".*")
            assert lower.startswith(pin), f"{requirement} is not tested at {lower}"


def test_tests_of_the_hub_files_need_only_what_the_hub_files_need():
    """`make test-oldest` runs them before the rest is installed, which an environment that is kept would hide."""
    recipe = (ROOT / "Makefile").read_text().split("\ntest-oldest:")[1].split("pip install")[0]
    files = re.findall(r"tests/\S+\.py", recipe)
    assert "tests/test_modeling_condvit.py" in files
    later = {"datasets", "accelerate", "faiss", "evaluate", "pyarrow", "matplotlib", "tensorboard", "hypothesis"}
    script = f"""
import sys
from importlib.machinery import PathFinder
import pytest
class WithoutThem(PathFinder):
    @classmethod
    def find_spec(cls, name, *args):
        return None if name in {later} else super().find_spec(name, *args)
sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutThem
sys.exit(pytest.main(sys.argv[1:]))"""
    asked = [sys.executable, "-c", script, "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    collected = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert collected.returncode == 0, collected.stdout[-2000:]


def test_actions_are_commits():
    for workflow in (ROOT / ".github/workflows").glob("*.yml"):
        content = workflow.read_text()
        assert all(re.fullmatch(r"\S+@[0-9a-f]{40}", used) for used in re.findall(r"uses: (\S+)", content))
        assert "contents: read" in content and content.count("timeout-minutes") == content.count("runs-on")
