"""Runs the ONNX graphs beside this file as CondViTModel is run, without torch.

    from condvit_onnx import CondViTOnnx
    from processing_condvit import CondViTProcessor

    model, processor = CondViTOnnx("MODEL/onnx"), CondViTProcessor.from_pretrained("MODEL")
    model(**processor("scene.jpg", categories="Bags", return_tensors="np")).image_embeds  # (1, P) float32 unit rows

This file needs onnxruntime and numpy. The processor needs numpy, Pillow and transformers, which it runs without torch.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

BYTES, FLOATS = "pixels", "pixel_values"  # what graphs call their pixels, as uint8 or as the processor makes them


class Embeddings(NamedTuple):
    image_embeds: np.ndarray  # (B, P) float32 unit rows


class CondViTOnnx:
    """Embeds images, or the thing in them that a condition names, as CondViTModel does.

    Args:
        folder: that of the graphs; by default the one of this file.
        int8: whether to run the graphs with int8 weights.
        options: `providers`, `sess_options` and what else `onnxruntime.InferenceSession` takes; by default the CPU.

    Attributes:
        name: the model's; condition: "category", "text" or "none"; categories: their names by index.
        image_size: S, pixels a side; dim: P.
        reads: "pixels" where the graphs take bytes, "pixel_values" where they take floats.
    """

    def __init__(self, folder: str | Path | None = None, int8: bool = False, **options: Any) -> None:
        self.folder, self.suffix = Path(folder or Path(__file__).parent), "_int8" if int8 else ""
        self.options = {"providers": ["CPUExecutionProvider"], **options}
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}
        facts = self._session("gallery").get_modelmeta().custom_metadata_map
        self.name, self.condition = facts["model"], facts["condition"]
        self.image_size, self.dim = int(facts["image_size"]), int(facts["projection_dim"])
        self.reads = self._session("gallery").get_inputs()[0].name
        self.categories: list[str] = json.loads(facts.get("categories", "[]"))
        self.mean, self.std = (
            255 * np.float32(json.loads(facts[f"image_{name}"])).reshape(3, 1, 1) for name in ("mean", "std")
        )

    def __call__(
        self,
        pixel_values: Any = None,
        category_indices: Any = None,
        text_embeds: Any = None,
        pixels: Any = None,
        input_ids: Any = None,
        attention_mask: Any = None,
    ) -> Embeddings:
        """Embeds images as a whole or, with one condition for each, the things that are meant.

        Args:
            pixel_values: (B, 3, S, S) float32, as CondViTProcessor makes them.
            category_indices: (B,) integers; text_embeds: (B, E) float32, for a text model.
            pixels: (B, 3, S, S) uint8 in place of `pixel_values`: RGB, padded with white to a square, resized.
            input_ids, attention_mask: refused, as the text encoder is no part of a graph.
        """
        if input_ids is not None:
            raise ValueError("A graph reads no tokens. Embed texts by the text encoder, and give text_embeds.")
        if (pixel_values is None) == (pixels is None):
            raise ValueError("Give either pixel_values or pixels.")
        condition = self._condition(category_indices, text_embeds)
        session = self._session("query" if condition else "gallery")
        given = self._checked(pixels, np.uint8) if pixel_values is None else self._checked(pixel_values, np.float32)
        if self.reads == FLOATS:
            feeds = {FLOATS: given if pixels is None else (given - self.mean) / self.std}
        else:
            feeds = {BYTES: given if pixel_values is None else self._as_bytes(given)}
        for name, rows in condition.items():
            if len(rows) != len(given):
                raise ValueError(f"{name} has {len(rows)} rows, but there are {len(given)} images.")
        return Embeddings(session.run(None, {**feeds, **condition})[0])

    def _session(self, name: str) -> onnxruntime.InferenceSession:
        """A graph, loaded when it is first asked: a service of queries has no use for the other one."""
        if name not in self.sessions:
            path = self.folder / f"{name}{self.suffix}.onnx"
            if not path.is_file():
                raise FileNotFoundError(f"There is no {path}. Write it by publish_lrvsf.py onnx.")
            self.sessions[name] = onnxruntime.InferenceSession(path, **self.options)
        return self.sessions[name]

    def _condition(self, category_indices: Any, text_embeds: Any) -> dict[str, np.ndarray]:
        """The graph's input for the condition; none at all without one."""
        if category_indices is None and text_embeds is None:
            return {}
        if category_indices is not None and text_embeds is not None:
            raise ValueError("category_indices and text_embeds were given. Give one of them.")
        if category_indices is not None:
            indices = np.asarray(category_indices, np.int64)
            if self.condition == "none":
                raise ValueError('This model has condition="none". Call it without category_indices.')
            if wrong := [index for index in indices.tolist() if not 0 <= index < len(self.categories)]:
                raise IndexError(f"category_indices holds {wrong}. The categories are 0 to {len(self.categories) - 1}.")
            if self.condition == "category":
                return {"category_indices": indices}
            text_embeds = np.load(self.folder / "category_text_embeds.npy")[indices]
        if self.condition != "text":
            raise ValueError(f"This model has condition={self.condition!r}. Call it without a text.")
        if not np.isfinite(rows := np.asarray(text_embeds, np.float32)).all():
            raise ValueError("text_embeds holds numbers that are not finite. Look at what embedded the texts.")
        return {"text_embeds": rows}

    def _checked(self, given: Any, dtype: type) -> np.ndarray:
        array, shape = np.asarray(given), (3, self.image_size, self.image_size)
        if array.shape[1:] != shape or array.dtype != dtype:
            wanted = f"(B, {', '.join(map(str, shape))}) of {np.dtype(dtype)}"
            raise ValueError(f"The images are {array.shape} of {array.dtype}. Give {wanted}.")
        return array

    def _as_bytes(self, values: np.ndarray) -> np.ndarray:
        """The bytes that the processor made its values of, every bit of them."""
        exact = values * self.std + self.mean
        near = np.rint(exact)
        if not ((np.abs(exact - near) <= 0.01) & (near >= 0) & (near <= 255)).all():  # which no NaN passes
            raise ValueError("pixel_values are not normalised bytes. Take CondViTProcessor, or give uint8 pixels.")
        return near.astype(np.uint8)
