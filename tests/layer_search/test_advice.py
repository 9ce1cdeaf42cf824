"""A named layer without any gradient: the warning says why, where tokens tell, and which layer to name."""

import warnings

import pytest
import torch
from support.networks import ConvNet
from torch import nn

import gradcam_fast


class ClassToken(nn.Module):
    """A transformer on 8x8 patches of 32x32 images; the head reads the class token only."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.batch_first = batch_first
        self.patch, self.token = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.randn(1, 1, 16))
        self.blocks = nn.Sequential(*(self.block() for _ in range(2)))
        self.head = nn.Linear(16, 5)
        self.eval()

    def block(self):
        return nn.TransformerEncoderLayer(16, 2, 32, batch_first=self.batch_first, norm_first=True, dropout=0)

    def forward(self, images):
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), tokens], 1)
        if self.batch_first:
            return self.head(self.blocks(tokens)[:, 0])
        return self.head(self.blocks(tokens.transpose(0, 1))[0])


def warnings_of(model, images, **choices):
    with pytest.warns(UserWarning, match="zero everywhere") as caught:
        explanation = gradcam_fast.explain(model, images, **choices)
    word = "no gradient"
    assert explanation.reason == ([[word] * choices["topk"]] if "topk" in choices else [word]) * len(images)
    assert len(caught) == 1
    return str(caught[0].message)


@pytest.mark.parametrize("choices", [{}, {"target": 2}, {"topk": 2}, {"method": "layercam"}], ids=str)
@pytest.mark.parametrize("batch_first", [True, False])
def test_behind_the_last_block_only_the_class_token_is_read(batch_first, choices):
    message = warnings_of(ClassToken(batch_first), torch.rand(3, 3, 32, 32), layer="blocks.1", **choices)
    assert "'blocks.1'" in message
    assert "reads only tokens that are no patches, such as the class token; name layer='blocks.1.norm1'" in message


def test_a_saturated_score_gets_no_such_advice(images):
    message = warnings_of(ConvNet(), images, layer="features", target=lambda output: 0 * output[:, 0])
    assert "class token" not in message and message.endswith("(a saturated sigmoid or a head of zeros has none)")


def test_a_layer_that_a_dead_one_hides_is_named(images):
    model = ConvNet()

    def dead_end(module, args, output):
        return output * 0 + model.shortcut(args[0])

    model.shortcut = nn.Sequential(nn.Conv2d(3, 12, 3, stride=4, padding=1), nn.ReLU())
    model.features.register_forward_hook(dead_end)
    assert "name layer=" in warnings_of(model, images, layer="features.3")


def test_the_model_runs_no_more_for_the_second_batch_without_gradient():
    model, images, runs = ClassToken(), torch.rand(1, 3, 32, 32), []
    model.register_forward_hook(lambda *_: runs.append(1))
    explainer = gradcam_fast.Explainer(model, layer="blocks.1")
    with pytest.warns(UserWarning, match=r"name layer='blocks.1.norm1'"):
        explainer(images)
    assert len(runs) > 1
    runs.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one warning for each cause
        explainer(images)
    assert len(runs) == 1
