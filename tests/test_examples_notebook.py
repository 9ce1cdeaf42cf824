"""The notebook in examples/ runs as it is, and its cells show pictures without %matplotlib inline."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "photos.ipynb"


@pytest.fixture(scope="module")
def outputs():
    """The last output of each cell of code, by the cell's last line."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("efficientnet_lite_pytorch")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return {cell.source.splitlines()[-1]: cell.outputs[-1]["data"] for cell in cells}


@pytest.mark.slow
def test_explanations_figures_and_overlays_show_as_pictures(outputs):
    for line, data in outputs.items():
        pictures = line in ("explanation", "both", "both[0].show()", "explanation.overlay()")
        assert ("image/png" in data) == (pictures or line.startswith("gradcam_fast.figures")), line
    assert "image/png;base64" in outputs["explanation"]["text/html"]


@pytest.mark.slow
def test_the_words_beside_them_can_be_read(outputs):
    assert "EfficientNet" in outputs["explainer"]["text/plain"]
    assert "cat" in outputs["explanation.top(3)[0]"]["text/plain"]
    assert outputs["gradcam_fast.backend()"]["text/plain"].startswith("gradcam_fast on torch")
