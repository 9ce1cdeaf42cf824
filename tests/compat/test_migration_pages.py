"""The Python blocks of docs/from-*.md run as they stand there, and old and new give the same maps."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import gradcam_fast

pytest.importorskip("torchvision")
ROOT = Path(gradcam_fast.__file__).parents[1]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def run(code, **names):
    torch.manual_seed(0)
    exec(code, names)
    return names


def test_from_pytorch_grad_cam_old_and_new_give_the_same_map_and_picture():
    before, after, *_ = blocks("from-pytorch-grad-cam.md")
    new = run(after)
    assert new["maps"].shape == (1, 224, 224) and new["picture"].shape == (224, 224, 3)
    pytest.importorskip("pytorch_grad_cam")
    old = run(before)
    np.testing.assert_allclose(new["maps"], old["maps"], atol=3e-6)
    # A difference of rounding may fall on the edge between two of 256 colours.
    assert np.mean(new["picture"] != old["picture"]) < 1e-3


def test_from_pytorch_grad_cam_the_other_blocks_run():
    _, after, install, own, subclass = blocks("from-pytorch-grad-cam.md")
    names = run(after)
    exec(own, names)
    np.testing.assert_allclose(names["explanation"].heatmap.numpy(), names["maps"], atol=2e-6)
    exec(subclass, names)
    assert names["maps"].shape == (1, 224, 224)
    code = f"{install}\nprint(GradCAM.__module__)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "gradcam_fast.compat.pytorch_grad_cam.grad_cam"


def test_from_torchcam_old_and_new_give_the_same_map():
    before, after = blocks("from-torchcam.md")
    new = run(after)
    assert new["explanation"].heatmap.shape == (2, 224, 224)
    pytest.importorskip("torchcam")
    old = run(before)
    small = gradcam_fast.explain(
        new["model"], new["images"], target=[281, 282], layer="layer4", method="layercam", size=7
    )
    torch.testing.assert_close(small.heatmap, old["maps"].detach(), rtol=0, atol=3e-5)


def test_from_captum_old_and_new_give_the_same_map():
    before, after = blocks("from-captum.md")
    new = run(after)
    pytest.importorskip("captum")
    old = run(before)["maps"][:, 0].detach()
    torch.testing.assert_close(new["explanation"].heatmap, old, rtol=0, atol=float(3e-5 * old.max()))


@pytest.mark.parametrize("page", ["from-pytorch-grad-cam.md", "from-torchcam.md", "from-captum.md"])
def test_every_name_of_gradcam_fast_in_the_tables_exists(page):
    text = (ROOT / "docs" / page).read_text()
    for method in re.findall(r'method="([a-z+]+)"', text):
        gradcam_fast.Explainer(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), method=method)
    for room, name in re.findall(r"`?(targets|features)\.(\w+)", text):
        assert hasattr(getattr(gradcam_fast, room), name), f"{room}.{name}"
