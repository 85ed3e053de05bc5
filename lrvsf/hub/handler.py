"""What a Hub inference endpoint runs for this model: a picture, and what is meant in it -> embeddings.

The endpoint calls `EndpointHandler(path)` once, then `handler({"inputs": ..., "parameters": {"condition": ...}})` for
each request, or `{"text": ...}` where the model reads texts. `publish_lrvsf.py handler` puts this file into a model
folder. It needs what the other files there need: torch, transformers, numpy and Pillow.
"""

import base64
import binascii
import io
from typing import Any

import torch
from PIL import Image, ImageOps
from transformers import AutoModel, AutoProcessor

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow would start Ghostscript for a PostScript file
MAX_PIXELS = 50_000_000  # of a picture; 200 MB when it is decoded
MAX_PICTURES = 32  # in one request
MAX_LETTERS = 200  # of a condition, by name or in words


class EndpointHandler:
    """
    Args:
        path: the model's folder.
    """

    def __init__(self, path: str = "") -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # The endpoint runs this file, so the folder's own code is trusted already.
        self.model = AutoModel.from_pretrained(path, trust_remote_code=True, dtype=torch.float32).to(self.device).eval()
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)

    @torch.inference_mode()
    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """An embedding for each picture, under the condition where one is given.

        Args:
            data: `inputs` is a picture or a list of them, in base64; of a body that is a picture, the endpoint itself
                makes a Pillow image. `parameters["condition"]` is one name for all, or a list with one for each;
                `parameters["text"]` in its place says it in words.

        Returns: `[{"condition": ..., "embedding": [...]}, ...]`, unit vectors in the order of the inputs; a condition
            is a name, a text or None.

        Raises ValueError: a picture cannot be read, a condition is not known, a text cannot be read or says nothing.
        """
        inputs = data.get("inputs")
        pictures = inputs if isinstance(inputs, list) else [inputs]
        if not 1 <= len(pictures) <= MAX_PICTURES:
            raise ValueError(f"There are {len(pictures)} pictures. Send 1 to {MAX_PICTURES}.")
        condition, text = ((data.get("parameters") or {}).get(name) for name in ("condition", "text"))
        if condition is not None and text is not None:
            raise ValueError("The parameters condition and text each say what is meant. Give one of them.")
        asked = text if condition is None else condition
        names = asked if isinstance(asked, list) else [asked] * len(pictures)
        if len(names) != len(pictures) or len({name is None for name in names}) > 1:
            raise ValueError(f"There are {len(pictures)} pictures. Give one condition for all, or one for each.")
        if long := [name for name in names if len(str(name)) > MAX_LETTERS]:
            raise ValueError(f"A condition has {len(str(long[0])):,} letters. {MAX_LETTERS} are the most.")
        said = {} if names[0] is None else {"categories" if text is None else "texts": list(map(str, names))}
        batch = self.processor([_shown(one) for one in pictures], **said, return_tensors="pt")
        rows = self.model(**{name: tensor.to(self.device) for name, tensor in batch.items()}).image_embeds  # (B, D)
        return [{"condition": name, "embedding": row} for name, row in zip(names, rows.float().tolist(), strict=True)]


def _shown(picture: Any) -> Image.Image:
    """A picture as a browser shows it, upright and on white, as catalogs see theirs. Nothing is ever fetched."""
    if isinstance(picture, str):
        try:
            picture = base64.b64decode(picture.partition(",")[2] if picture[:5] == "data:" else picture, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError("A picture must be base64; addresses are not fetched.") from error
    if not isinstance(picture, bytes | Image.Image):
        raise ValueError(f"A picture must be base64, and not of type {type(picture).__name__}.")
    try:
        image = Image.open(io.BytesIO(picture), formats=FORMATS) if isinstance(picture, bytes) else picture
        if image.width * image.height <= MAX_PIXELS:  # known from the header: a small file can be a huge picture
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return image.convert("RGB")
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise ValueError(f"The picture cannot be read: {error}") from error
    raise ValueError(f"The picture has {image.width} x {image.height} pixels. {MAX_PIXELS:,} are the most.")
