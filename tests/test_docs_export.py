"""The steps of docs/export.md, with the network of the demo: one command exports it, and it runs without its code."""

import re
import subprocess
import sys

import pytest
import torch
from support import packages
from support.command import CHELSEA
from support.installs import ROOT
from support.tolerances import RECIPE_PARITY

import gradcam_fast

DOCS = (ROOT / "docs" / "export.md").read_text()
WITHOUT = "import sys; sys.modules.update(dict.fromkeys(('torchvision', 'timm', 'efficientnet_lite_pytorch')))\n"

pytestmark = pytest.mark.slow


def python(program, folder):
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_commands_explain_a_photo_without_the_network(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^gradcam-fast (.*)$", DOCS, re.MULTILINE)[:3]
    assert commands == ["export --topk 2 -o lite0.pt2", "info lite0.pt2", "explain cat.jpg --model lite0.pt2"]
    assert run(*commands[0].split())[0] == 0
    (tmp_path / "cat.jpg").symlink_to(CHELSEA)
    command = WITHOUT + "from gradcam_fast.cli import main; sys.exit(main({}))"
    facts = python(command.format(commands[1].split()), tmp_path)
    assert [line.split(maxsplit=1)[1] for line in facts[:2]] == [
        "EfficientNet-Lite0 (ImageNet, 1000 classes)",
        "the 2 most probable classes",
    ]
    printed = python(command.format(commands[2].split()), tmp_path)
    assert re.fullmatch(r" +7[5-9]\.\d %  Egyptian cat \(285\)", printed[1])
    assert (tmp_path / "gradcam-fast-pictures" / "cat-gradcam.jpg").exists()


def test_the_lines_of_python_do_what_they_say(tmp_path, monkeypatch):
    models = pytest.importorskip("torchvision.models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "resnet18", packages.model)  # compiled in less time
    writes, reads = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    exec(writes, {})
    names = {}
    exec(reads, names)
    images = torch.rand(5, 3, 224, 224)
    expected = gradcam_fast.explain(packages.model(), images, topk=3)
    torch.testing.assert_close(names["explainer"](images).heatmap, expected.heatmap, rtol=0, atol=RECIPE_PARITY)
    assert names["explanation"].heatmap.shape == expected.heatmap.shape
