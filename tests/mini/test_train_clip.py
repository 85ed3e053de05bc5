"""Mini CLIP and the contact sheet, as steps of prepare_lrvsf.py."""

import json

import pytest
from PIL import Image
from transformers import CLIPModel

import prepare_lrvsf
from lrvsf.mini.build import MiniSize, build_mini


def test_mini_clip_is_trained_from_what_mini_drew(tmp_path, capsys):
    build_mini(tmp_path / "mini", MiniSize(products=4, test_products=1, distractors=1, image_size=32), processes=1)
    recipe = tmp_path / "recipe.yaml"
    small = "image_size: 32\nwidth: 64\nlayers: 1\nremove_unused_columns: false\n"
    recipe.write_text(f"data: {tmp_path / 'mini'}\nmax_steps: 100\n{small}")
    flags = ["--output_dir", str(tmp_path / "clip"), "--max-steps", "1", "--per_device_train_batch_size", "2"]
    prepare_lrvsf.main(["mini_clip", str(recipe), *flags, "--use_cpu", "True", "--report_to", "none"])
    assert "training images" in capsys.readouterr().out
    assert CLIPModel.from_pretrained(tmp_path / "clip").config.projection_dim == 128
    assert json.loads((tmp_path / "clip/training.json").read_text())["steps"] == 1, "a flag overrides the recipe"
    # What was killed goes on: two steps, then one more, then another.
    flags += ["--use_cpu", "True", "--report_to", "none", "--save_strategy", "steps", "--save_steps", "2"]
    flags[flags.index("--output_dir") + 1] = str(tmp_path / "later")
    for asked, says in (("True", "has no checkpoint"), (str(tmp_path / "gone"), "no such folder")):
        with pytest.raises(ValueError, match=says):
            prepare_lrvsf.main(["mini_clip", str(recipe), *flags, "--resume_from_checkpoint", asked])
    for steps, asked in ((2, "auto"), (3, "auto"), (4, "True")):
        flags[flags.index("--max-steps") + 1] = str(steps)
        prepare_lrvsf.main(["mini_clip", str(recipe), *flags, "--resume_from_checkpoint", asked])
        log = json.loads((tmp_path / "later/training.json").read_text())
        assert log["steps"] == steps
    assert (tmp_path / "later/checkpoint-2").is_dir()


def test_mini_clip_says_what_is_missing_before_it_imports_torch(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=f"no train/.*draw it with `python prepare_lrvsf.py mini {tmp_path}`"):
        prepare_lrvsf.main(["mini_clip", "--data", str(tmp_path)])
    with pytest.raises(SystemExit):
        prepare_lrvsf.main(["mini_clip", "--help"])
    assert "--patch_size INT" in capsys.readouterr().out


def test_the_sheet_shows_every_category(tmp_path):
    prepare_lrvsf.main(["mini_sheet", str(tmp_path / "sheet.png")])
    assert Image.open(tmp_path / "sheet.png").size == (10 * 124 + 4, 6 * 124 + 4)
