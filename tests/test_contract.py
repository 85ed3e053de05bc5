"""A saved folder is a complete repository: it loads where this project is not installed, and can be saved again there.

Everything runs in other processes, in another working directory, with an empty HF_HOME.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_condvit import CondViTModel
from processing_condvit import CondViTProcessor

ROOT = Path(__file__).parents[1]
HUB_FILES = {"configuration_condvit.py", "modeling_condvit.py", "processing_condvit.py"}

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
from transformers import AutoModel, AutoProcessor, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

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
pooled = extract(image, return_tensors=True)
save_file({"conditional": output.image_embeds, "unconditional": output.target_embeds, "pooled": pooled}, result)
"""


def run(script: str, *arguments: Path, cwd: Path, python_path: str = "") -> None:
    """Runs a script as a stranger would: elsewhere, with nothing cached."""
    (cwd / "home").mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and key != "PYTHONPATH"}
    env = {**kept, "HF_HOME": str(cwd / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": python_path}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def saved(
    make_model: Callable[..., CondViTModel], make_image: Callable, tmp_path: Path
) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """A model folder, an image file, and what the model makes of it in this process."""
    model, processor = make_model(categories=["Mugs", "Pots"]), CondViTProcessor(["Mugs", "Pots"], size=32)
    image = make_image(50, 40)
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
    pooled = results.pop("pooled")
    for name, embeds in results.items():
        torch.testing.assert_close(embeds, expected[name], atol=1e-6, rtol=0)
    torch.testing.assert_close(pooled, expected["unconditional"][:1], atol=1e-6, rtol=0)


def test_hub_files_are_short_and_stand_alone() -> None:
    """They are read by strangers before they are trusted, and run where only these packages are."""
    lines = [line for name in sorted(HUB_FILES) for line in (ROOT / name).read_text().splitlines()]
    assert len(lines) <= 450
    imported = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    allowed = {"copy", "dataclasses", "typing", "torch", "numpy", "PIL", "transformers", "huggingface_hub"}
    assert imported <= allowed
