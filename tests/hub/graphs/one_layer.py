"""Tiny models of one layer, as an export takes seconds for each, and more for more of them."""

from made import tiny_condvit

from processing_condvit import CondViTProcessor

CATEGORY = {}
TEXT = {"condition": "text", "text_dim": 24}
NONE = {"condition": "none"}


def one_layer(**config):
    """A model in evaluation mode, the same weights at every call."""
    return tiny_condvit(**{"num_hidden_layers": 1, **config})


def save_one_layer(folder, **config):
    """Writes its folder, with a processor; gives the folder."""
    model = one_layer(**config)
    model.save_pretrained(folder)
    CondViTProcessor(model.config.categories, size=model.config.image_size).save_pretrained(folder)
    return folder
