"""Folders of tiny models."""

import pytest
from one_layer import save_one_layer


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """`tiny_folder(**config)`: the folder of a model of one layer, made once for each configuration."""
    made = {}

    def folder(**config):
        key = repr(sorted(config.items()))
        if key not in made:
            made[key] = save_one_layer(tmp_path_factory.mktemp("model") / "tiny", **config)
        return made[key]

    return folder
