"""Cluster files, as far as they can be tried without a cluster: they name what is there; commands are taken."""

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import search_catalog

ROOT = Path(__file__).parent.parent
JOB = yaml.safe_load((ROOT / "deploy/ray-kubernetes.yaml").read_text())["spec"]
SSH = yaml.safe_load((ROOT / "deploy/ray-ssh.yaml").read_text())
PAGE = (ROOT / "docs/scale.md").read_text()
IMAGE = re.sub(r"\\\n\s*", "", (ROOT / "deploy/ray.Dockerfile").read_text()).splitlines()
WORKER = JOB["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]


def words_of_ssh():
    (command,) = re.findall(r'ray exec deploy/ray-ssh\.yaml --tmux \\?\s*"([^"]+)"', PAGE)
    return shlex.split(command.replace("\\\n", " "))


@pytest.mark.parametrize("words", [shlex.split(JOB["entrypoint"]), words_of_ssh()], ids=["kubernetes", "ssh"])
def test_the_command_is_taken(words):
    script = next(place for place, word in enumerate(words) if word.endswith("search_catalog.py"))
    model = words[script + 2]
    with pytest.raises(FileNotFoundError, match=re.escape(model)):  # flags are read before that is found
        search_catalog.main(words[script + 1 :])
    assert "--engine" in words and words[words.index("--address") + 1] == "auto"


def test_the_image_has_what_the_command_needs():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [name for line in IMAGE if line.startswith("COPY") for name in line.split()[1:-1]]
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(fnmatch(name, one[1:]) for one in ignored if one[0] == "!"), name
    assert f"USER {WORKER['securityContext']['fsGroup']}" in IMAGE
    assert "WORKDIR /app" in IMAGE and "/app/search_catalog.py" in JOB["entrypoint"]
    assert {path.name for path in ROOT.glob("*_condvit.py")} | {"search_catalog.py", "lrvsf"} <= set(copied)


def test_ray_has_one_version():
    (bounds,) = (
        Requirement(line)
        for line in (ROOT / "requirements-ray.txt").read_text().splitlines()
        if re.match(r"ray\b", line)
    )
    assert JOB["rayClusterSpec"]["rayVersion"] in bounds.specifier


def test_the_job_s_pods_have_what_they_name():
    head = JOB["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    (worker,) = WORKER["containers"]
    assert head["image"] == worker["image"]
    assert f"-t {worker['image']} ." in (ROOT / "deploy/ray.Dockerfile").read_text()
    for container in (head, worker):
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert {one["name"] for one in worker["volumeMounts"]} == {one["name"] for one in WORKER["volumes"]}
    places = [one["mountPath"] for one in worker["volumeMounts"]] + ["/app"]
    for path in (word for word in shlex.split(JOB["entrypoint"]) if word.startswith("/")):
        assert any(path.startswith(f"{place}/") for place in places), path
    limits, words = worker["resources"]["limits"], shlex.split(JOB["entrypoint"])
    each = int(words[words.index("--cpus_per_actor") + 1])
    assert each * int(limits["nvidia.com/gpu"]) + JOB["entrypointNumCpus"] <= int(limits["cpu"])
    assert "entrypointNumGpus" not in JOB  # which an actor would miss


def test_each_machine_starts_the_same_ray():
    commands = SSH["head_start_ray_commands"] + SSH["worker_start_ray_commands"]
    started = {path for command in commands for path in re.findall(r"(\S+/ray) (?:start|stop)", command)}
    assert started == {"/shared/lrvsf/.venv-ray/bin/ray"}
    words = words_of_ssh()
    assert words[:2] == ["cd", "/shared/lrvsf"] and ".venv-ray/bin/python" in words
    assert SSH["provider"]["head_ip"] not in SSH["provider"]["worker_ips"]
