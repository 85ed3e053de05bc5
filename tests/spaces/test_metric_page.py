"""The metric's page, from a folder that was made as its README makes a Space, in a browser."""

import importlib.util
import shutil
from pathlib import Path

import pandas as pd
import pytest
from browser import opened, served

ROOT = Path(__file__).parents[2]


@pytest.fixture
def space(tmp_path):
    """The two copies of the README; the folder's name is a container's, which is no metric's."""
    shutil.copytree(ROOT / "metrics/lrvsf_recall", tmp_path / "app")
    shutil.copytree(ROOT / "lrvsf", tmp_path / "app/lrvsf", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "cwd").mkdir()
    return tmp_path


def test_it_computes_what_is_in_its_two_columns(chromium, space):
    caches = {"HF_HOME": str(space / "home"), "HF_HUB_OFFLINE": "1"}
    # -I: neither the folder that it is started in nor PYTHONPATH may help it out.
    with served("-I", space / "app/app.py", env=caches, cwd=space / "cwd") as url, opened(chromium, url) as page:
        page.get_by_text("Metric: lrvsf_recall").first.wait_for()
        assert "sdk_version" not in page.content()  # the README stands below, without its front matter
        page.get_by_role("button", name="Submit").click()
        page.get_by_text("recall_at_10_std").first.wait_for()


def test_what_is_wrong_with_an_input_is_told():
    gr = pytest.importorskip("gradio", reason="no gradio here: pip install -r requirements-app.txt")
    folder = ROOT / "metrics/lrvsf_recall"
    spec = importlib.util.spec_from_file_location("metric_page", folder / "app.py")
    spec.loader.exec_module(app := importlib.util.module_from_spec(spec))
    compute = app.build().fn
    for row, told in [
        (["[1, 1]", "[1, 0]"], "row 0 has norm 1.4142"),
        (["[1, ", "[1, 0]"], "Expecting value"),  # JSON's own words
        (["", ""], "one row per image"),
        (["0.5", "0.5"], "don't match the expected format"),
    ]:
        with pytest.raises(gr.Error, match=told):
            compute(pd.DataFrame([row], columns=["predictions", "references"]))
