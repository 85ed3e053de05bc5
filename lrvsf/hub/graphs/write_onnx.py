"""A model folder -> the same model as ONNX graphs, for what runs without torch: services, telephones, browsers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from lrvsf.command import quiet_libraries
from lrvsf.durable import locked, whole_folder
from lrvsf.paths import check_model, check_output, public_name
from lrvsf.report import as_table

if TYPE_CHECKING:
    from modeling_condvit import CondViTModel

FOLDER = "onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# What an earlier call wrote, and this one replaces.
OWN = {"query", "gallery", "query_int8", "gallery_int8", "category_text_embeds", "condvit_onnx", "__pycache__"}


def onnx(
    model: Annotated[str, Argument(help="model folder, or OWNER/NAME on the Hub")],
    out: Annotated[
        Path | None, Argument(help="folder in which onnx/ is written, or replaced; by default the model's own")
    ] = None,
    int8: Annotated[
        list[Path] | None,
        Option(help="int8 graphs, too, checked on these pictures: a file or a folder, one flag for each"),
    ] = None,
    float_pixels: Annotated[
        bool,
        Option("--float_pixels", help="pixels enter as the processor's pixel_values; by default they enter as bytes"),
    ] = False,
) -> str:
    """Write a model as ONNX graphs, one for queries and one for galleries.

    onnx/query.onnx reads pixels and a condition, onnx/gallery.onnx pixels alone, and condvit_onnx.py beside them runs
    both without torch. Pixels are uint8 (B, 3, S, S), normalised within the graph. Rows are compared with torch's, and
    nothing is written if they differ.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ImportError(f'This step needs {" and ".join(missing)}: pip install "lrvsf[onnx]"')
    check_model(model)
    if out is None and not Path(model).is_dir():
        raise ValueError(f"{model} is no folder here. Name a second folder, in which onnx/ is written.")
    folder = (out or Path(model)) / FOLDER
    check_output(folder, "OUT")
    _refuse_others_files(folder)
    if absent := [place for place in int8 or [] if not place.exists()]:
        raise FileNotFoundError(f"There is no {absent[0]}. Name pictures, or a folder of them.")

    quiet_libraries()
    from lrvsf.hub.graphs.given_pictures import read_pictures
    from lrvsf.hub.graphs.onnx_folder import write_checked

    loaded = _load(model)
    pictures, left_out = read_pictures(int8, loaded.config.image_size) if int8 else (None, None)
    with locked(folder.parent, "an export to ONNX"), whole_folder(folder) as writing:
        report = write_checked(loaded, writing, public_name(model), pictures, float_pixels)
    return as_table({"folder": str(folder), **report, **(left_out.report("pictures left out") if left_out else {})})


def _load(name: str) -> CondViTModel:
    """The model in float32. Raises ValueError: it is of another family."""
    from lrvsf.embedding.encoder import load_model
    from modeling_condvit import CondViTModel

    model = load_model(name)
    if not isinstance(model, CondViTModel):
        raise ValueError(f"{name} is a baseline of another family. Give a CondViT or a CLIP.")
    return model.eval()


def _refuse_others_files(folder: Path) -> None:
    """The folder is replaced as a whole, so nothing may lie there that this step did not write."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    if others := [path.name for path in there if path.name.partition(".")[0] not in OWN]:
        raise FileExistsError(f"{folder} holds {', '.join(others[:5])}, which this step did not write. Move it away.")
