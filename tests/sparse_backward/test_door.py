"""The sparse backward is one folder behind one function: without it the library gives the same maps."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.networks import ConvNet
from torch import nn
from torchvision.models import VisionTransformer

import gradcam_fast
from gradcam_fast._capture import gradients

PACKAGE = Path(gradcam_fast.__file__).parent
FOLDER = "_sparse_backward"


def vit():
    model = VisionTransformer(32, 4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
    nn.init.normal_(model.heads.head.weight)
    return model, "encoder.layers.encoder_layer_1.ln_1"


class Distilled(VisionTransformer):
    """Two class tokens with a head each, as DeiT's, and the mean of what they say."""

    def __init__(self):
        super().__init__(32, 4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
        self.distillation_token = nn.Parameter(torch.randn(1, 1, 16))
        self.encoder.pos_embedding = nn.Parameter(torch.randn(1, 2 + 64, 16))
        self.head, self.distillation_head = nn.Linear(16, 5), nn.Linear(16, 5)

    def forward(self, images):
        patches = self._process_input(images)
        extra = [token.expand(len(images), -1, -1) for token in (self.class_token, self.distillation_token)]
        tokens = self.encoder(torch.cat([*extra, patches], 1))
        return (self.head(tokens[:, 0]) + self.distillation_head(tokens[:, 1])) / 2


def deit():
    return Distilled(), "encoder.layers.encoder_layer_1.ln_1"


def vgg():
    model = ConvNet()
    hidden = nn.Linear(48, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Dropout()
    model.head = nn.Sequential(*model.head[:2], *hidden, nn.Linear(2048, 5))
    return model, "features"


@pytest.mark.parametrize("asked", [{}, {"target": 2}, {"topk": 3}, {"target": lambda logits: logits[:, :2].exp()}])
@pytest.mark.parametrize("make", [vit, deit, vgg])
def test_without_it_the_maps_are_the_same(make, asked, monkeypatch):
    model, layer = make()
    model, images = model.eval(), torch.randn(2, 3, 32, 32)
    ran, real = [], gradients.sparse_gradients

    def sparse_gradients(*arguments):
        found = real(*arguments)
        ran.append(found is not None)
        return found

    for method in ("gradcam", "layercam"):
        monkeypatch.setattr(gradients, "sparse_gradients", sparse_gradients)
        found = gradcam_fast.explain(model, images, layer=layer, method=method, **asked)
        monkeypatch.setattr(gradients, "sparse_gradients", lambda *arguments: None)
        expected = gradcam_fast.explain(model, images, layer=layer, method=method, **asked)
        assert expected.valid.all()
        torch.testing.assert_close(found.heatmap, expected.heatmap, rtol=0, atol=2e-6)
        torch.testing.assert_close(found.raw_max, expected.raw_max, rtol=2e-6, atol=0)
    assert ran == [True, True] or (make is vgg and not gradcam_fast.backend().kernels[0].fused)


def imports(file):
    """What a module of the package imports, as dotted names below the package."""
    package = file.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.removeprefix("gradcam_fast."), None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])]).removeprefix("gradcam_fast.")
            yield from ((module, alias.name) for alias in node.names)


def test_one_function_is_imported_from_it_once():
    imported = [
        (file.relative_to(PACKAGE).as_posix(), name)
        for file in PACKAGE.rglob("*.py")
        if FOLDER not in file.parts
        for module, name in imports(file)
        if FOLDER in (*module.split("."), name)
    ]
    assert imported == [("_capture/gradients.py", "sparse_gradients")]


EXPLAIN = """
import torch, gradcam_fast
from torch import nn
from torch.nn import functional as F

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, images):
        tokens = self.norm(self.patches(images).flatten(2).mT)
        heads = tokens.unflatten(2, (2, 8)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(heads, heads, heads)
        return self.head((tokens + mixed.transpose(1, 2).flatten(2))[:, 0])

torch.manual_seed(0)
model, images = Model().eval(), torch.randn(2, 3, 32, 32)
maps = [gradcam_fast.explain(model, images, topk=topk, layer="norm").heatmap for topk in (None, 3)]
"""


def test_the_folder_and_the_call_can_be_deleted(tmp_path):
    copy, output = tmp_path / "gradcam_fast", tmp_path / "maps.pt"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns(FOLDER, "__pycache__"))
    source = copy / "_capture" / "gradients.py"
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [
        line for line in lines if "import sparse_gradients" not in line and "sparse = sparse_gradients(" not in line
    ]
    assert len(lines) - len(kept) == 2
    source.write_text("".join(kept).replace("if sparse is None else sparse", ""), encoding="utf-8")
    save = f"assert gradcam_fast.__file__ == {str(copy / '__init__.py')!r}\ntorch.save(maps, {str(output)!r})"
    subprocess.run(
        [sys.executable, "-c", EXPLAIN + save], check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}
    )
    here = {}
    exec(EXPLAIN, here)
    torch.testing.assert_close(torch.load(output), here["maps"], rtol=0, atol=2e-6)
