"""The figure of docs/architecture.md names what is there."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_figure_is_drawn_and_names_files_that_are_there(tmp_path):
    tool = runpy.run_path(str(ROOT / "tools/draw_house.py"))
    tool["draw"](tmp_path / "house.png")
    assert (tmp_path / "house.png").stat().st_size > 0
    stems = {path.stem for path in ROOT.glob("lrvsf/**/*.py")} | {path.name for path in ROOT.glob("lrvsf/**/")}
    rooms_there = stems | {"spaces"} if (ROOT / "spaces").is_dir() else stems
    for script, rooms, does, _ in tool["COLUMNS"]:
        assert (ROOT / script).is_file() and {room.rstrip("/") for room in rooms.split()} <= rooms_there
        named = [word.strip() for _, text in does if ":\n" in text for word in text.split(":\n")[1].split(",")]
        assert set(named) <= stems
    for _, _, name, does, _ in tool["BARS"]:
        named = [word for _, text in does if ": " in text for word in text.split(": ")[1].split(", ")]
        assert name.startswith("configuration") or {word.rstrip("/") for word in name.split()} <= stems
        assert name.startswith("configuration") or set(named) <= stems
