"""The file of machines that are reached by SSH passes Ray's own check."""

from pathlib import Path

import pytest
import yaml

pytest.importorskip("ray")
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parents[2] / "deploy" / "ray-ssh.yaml"


def test_ray_takes_the_file():
    config = prepare_config(yaml.safe_load(FILE.read_text()))
    validate_config(config)
    (kind,) = config["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(config["provider"]["worker_ips"])
