"""Where a text model's encoder is: in the checkpoint, or at a name. A folder's name means nothing on other machines."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from lrvsf.hub.checkpoint_files import CONFIG, json_object
from lrvsf.paths import WEIGHTS, public_name


def check_found_anywhere(config: dict[str, Any], remedy: str) -> None:
    """Refuses a model whose text encoder other machines will not find.

    Args:
        config: what config.json says.
        remedy: what to do then.

    Raises ValueError: it is fetched from a folder of this machine.
    """
    name = (config.get("text_encoder") or {}).get("name")
    if config.get("text_encoder_in_checkpoint") or not isinstance(name, str):
        return
    # OWNER/NAME, or NAME of the Hub's first models.
    if Path(name).exists() or name.startswith((".", "~")) or Path(name).is_absolute() or name.count("/") > 1:
        raise ValueError(f"Its text encoder would be fetched from {name}, a folder that other machines lack: {remedy}.")


def put_encoder_into(folder: Path) -> None:
    """Puts the weights of a text model's encoder into its folder, so that the folder is enough.

    Raises:
        ValueError: the model reads no texts, or only embeddings of them.
        OSError: the encoder is not where config.json says; the disk is full.
    """
    from lrvsf.durable import whole_file
    from lrvsf.embedding.encoder import load_condvit

    if json_object(folder / CONFIG).get("text_encoder_in_checkpoint"):
        return
    model = load_condvit(str(folder), dtype="auto")
    config, encoder = model.config, model.sentence_encoder()
    model.text_encoder = encoder
    config.text_encoder_in_checkpoint = True
    config.text_encoder = config.text_encoder | {"name": public_name(config.text_encoder["name"])}
    with tempfile.TemporaryDirectory(dir=folder) as saved:
        model.save_pretrained(saved, max_shard_size="1TB")  # one file, which takes the place of one
        # The weights first: whoever reads them with the configuration that was there finds more than it needs.
        for name in (WEIGHTS, CONFIG):
            with whole_file(folder / name) as part:
                shutil.copyfile(Path(saved, name), part)
