"""The Python blocks of README.md run as they stand there."""

import re
from pathlib import Path

import pytest
import torch

import gradcam_fast

pytest.importorskip("torchvision")
USE, EQUIVALENT = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)


def test_the_lines_of_use_do_what_their_comments_say(capsys):
    names = {}
    exec(USE, names)
    assert names["explanation"].layer == "layer4" and "layer4" in capsys.readouterr().out
    assert names["explanation"].heatmap.shape == (8, 224, 224)
    assert names["pictures"].dtype == torch.uint8 and names["pictures"].shape == (8, 3, 224, 224)


def test_the_op_equals_its_plain_pytorch_equivalent():
    names = {
        "torch": torch,
        "activations": torch.randn(2, 30, 7, 7),
        "gradients": torch.randn(2, 30, 7, 7),
        "size": (40, 50),
    }
    exec(EQUIVALENT, names)
    heatmap, _, _ = gradcam_fast.cam(names["activations"], names["gradients"], names["size"])
    torch.testing.assert_close(heatmap, names["heatmap"], rtol=0, atol=1e-5)
