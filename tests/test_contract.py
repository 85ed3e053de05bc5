"""A saved folder is a complete repository: it loads where this project is not installed, and can be saved again there.

Everything runs in other processes, in another working directory, with an empty HF_HOME.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made import noise
from PIL import Image
from safetensors.torch import load_file

from modeling_condvit import CondViTModel
from processing_condvit import CondViTProcessor

ROOT = Path(__file__).parents[1]
HUB_FILES = {f"{name}_condvit.py" for name in ("configuration", "modeling", "processing", "text")}

WITH_REMOTE_CODE = """
import sys
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor

folder, again, image, result = sys.argv[1:]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
assert config.categories == model.config.categories == processor.categories == image_processor.categories
for loaded in (config, model, processor, image_processor):
    assert type(loaded).__module__.startswith("transformers_modules."), type(loaded)
assert "lrvsf" not in sys.modules and "torchvision" not in sys.modules

image = Image.open(image)
inputs = processor([image, image], ["Pots", "Mugs"], return_tensors="pt")
output = model(**inputs, target_pixel_values=inputs["pixel_values"])
save_file({"conditional": output.image_embeds, "unconditional": output.target_embeds}, result)
model.save_pretrained(again)
processor.save_pretrained(again)
"""

WITHOUT_REMOTE_CODE = """
import sys
import lrvsf.auto
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor, CLIPVisionConfig, CLIPVisionModel, ImageFeatureExtractionPipeline
from transformers import pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

folder, image, result = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=False)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
assert type(model).__module__ == "modeling_condvit", type(model)
assert type(processor).__module__ == type(image_processor).__module__ == "processing_condvit", type(processor)

image = Image.open(image)
inputs = processor([image, image], ["Pots", "Mugs"], return_tensors="pt")
output = model(**inputs, target_pixel_values=inputs["pixel_values"])
extract = pipeline("image-feature-extraction", model=folder, pool=True, trust_remote_code=False)
pooled, pots = extract(image, return_tensors=True), extract(image, categories="Pots", return_tensors=True)
found = {"conditional": output.image_embeds, "unconditional": output.target_embeds, "pooled": pooled, "pots": pots}
save_file(found, result)

shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
clip = CLIPVisionModel(CLIPVisionConfig(**shape))
objects = pipeline("image-feature-extraction", model=model, image_processor=image_processor)
assert objects(image, categories="Pots") == extract(image, categories="Pots")
others = pipeline("image-feature-extraction", model=clip, image_processor=CLIPImageProcessorPil(size=32, crop_size=224))
assert type(others) is ImageFeatureExtractionPipeline
"""

OTHER_LOADERS = """
import json
import sys
import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from transformers import pipeline

folder, photos, result = sys.argv[1:]
photos = json.loads(photos)
extract = pipeline("image-feature-extraction", model=folder, trust_remote_code=True)
found = {"pipeline": extract(photos), "pipeline of Pots": extract(photos, categories="Pots", batch_size=3)}
found["pipeline, pooled"] = extract([Image.open(photo) for photo in photos], pool=True)
found = {name: np.array(rows, np.float32)[:, 0] for name, rows in found.items()}
for word in ("category", "lables"):
    try:
        extract(photos[0], **{word: "Pots"})
        raise AssertionError(f"{word} was swallowed")
    except TypeError as error:
        assert word in str(error)

model = SentenceTransformer(folder, trust_remote_code=True)
found["sentence"] = model.encode(photos)
found["sentence of Pots"] = model.encode(photos, processing_kwargs={"image": {"categories": "Pots"}}, batch_size=3)
pairs = [{"image": photo, "text": ("Pots", "Mugs")[row % 2]} for row, photo in enumerate(photos)]
found["sentence of both"] = model.encode(pairs, batch_size=3)
model.save_pretrained(f"{folder}/again")
found["sentence, saved again"] = SentenceTransformer(f"{folder}/again", trust_remote_code=True).encode(photos)
save_file(found, result)
"""


def run(script: str, *arguments: Path | str, cwd: Path, python_path: str = "") -> None:
    """Runs a script as a stranger would: elsewhere, with nothing cached."""
    (cwd / "home").mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and key != "PYTHONPATH"}
    env = {**kept, "HF_HOME": str(cwd / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": python_path}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def saved(make_model: Callable[..., CondViTModel], tmp_path: Path) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """A model folder, an image file, and what the model makes of it in this process."""
    model, processor = make_model(categories=["Mugs", "Pots"]), CondViTProcessor(["Mugs", "Pots"], size=32)
    image = noise(50, 40)
    image.save(tmp_path / "image.png")
    model.save_pretrained(tmp_path / "first")
    processor.save_pretrained(tmp_path / "first")
    inputs = processor([image, image], ["Pots", "Mugs"], return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs, target_pixel_values=inputs["pixel_values"])
    expected = {"conditional": output.image_embeds, "unconditional": output.target_embeds}
    return tmp_path / "first", tmp_path / "image.png", expected


def test_two_generations_with_remote_code(saved: tuple, tmp_path: Path) -> None:
    folder, image, expected = saved
    for generation in ("second", "third"):
        assert {path.name for path in folder.glob("*.py")} == HUB_FILES
        assert (folder / "model.safetensors").exists()
        again, result = tmp_path / generation, tmp_path / f"{generation}.safetensors"
        run(WITH_REMOTE_CODE, folder, again, image, result, cwd=tmp_path / f"{generation}-cwd")
        for name, embeds in load_file(result).items():
            torch.testing.assert_close(embeds, expected[name], atol=1e-6, rtol=0)
        folder = again  # the next generation is loaded from what this one saved


def test_registered_classes_and_pipeline_without_remote_code(saved: tuple, tmp_path: Path) -> None:
    folder, image, expected = saved
    for path in folder.glob("*.py"):
        path.write_text("raise RuntimeError('code of the checkpoint was executed')\n")
    result = tmp_path / "result.safetensors"
    run(WITHOUT_REMOTE_CODE, folder, image, result, cwd=tmp_path / "cwd", python_path=str(ROOT))
    results = load_file(result)
    pooled, pots = results.pop("pooled"), results.pop("pots")
    for name, embeds in results.items():
        torch.testing.assert_close(embeds, expected[name], atol=1e-6, rtol=0)
    torch.testing.assert_close(pooled, expected["unconditional"][:1], atol=1e-6, rtol=0)
    torch.testing.assert_close(pots, expected["conditional"][:1], atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:EXIF orientation")
def test_pipeline_and_sentence_transformers_give_the_model_s_embeddings(saved: tuple, tmp_path: Path) -> None:
    """In a fresh process, plain and conditioned, of photos of other sizes that ask to be turned."""
    pytest.importorskip("sentence_transformers")
    folder, photos = saved[0], [str(tmp_path / f"{orientation}.png") for orientation in range(1, 9)]
    for orientation, photo in enumerate(photos, start=1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        noise(20 + 7 * orientation, 40).save(photo, exif=exif)
    model, processor = CondViTModel.from_pretrained(folder), CondViTProcessor.from_pretrained(folder)

    def embed(categories: str | list[str] | None) -> torch.Tensor:
        with torch.no_grad():
            return model(**processor(photos, categories, return_tensors="pt")).image_embeds

    run(OTHER_LOADERS, folder, json.dumps(photos), tmp_path / "result", cwd=tmp_path / "cwd")
    found = load_file(tmp_path / "result")
    assert len(found) == 7
    asked = {"pipeline of Pots": "Pots", "sentence of Pots": "Pots", "sentence of both": ["Pots", "Mugs"] * 4}
    for name, embeds in found.items():
        torch.testing.assert_close(embeds, embed(asked.get(name)), atol=1e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_hub_files_are_short_and_stand_alone() -> None:
    """They are read by strangers before they are trusted, and run where only these packages are."""
    lines = [line for name in sorted(HUB_FILES) for line in (ROOT / name).read_text().splitlines()]
    copies = [ROOT / "assets/mini-condvit" / name for name in HUB_FILES]
    assert all(copy.read_bytes() == (ROOT / copy.name).read_bytes() for copy in copies), "see CONTRIBUTING.md"
    assert len(lines) <= 920
    imported = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    allowed = {"torch", "numpy", "PIL", "safetensors", "transformers", "huggingface_hub"}
    assert imported - set(sys.stdlib_module_names) <= allowed
