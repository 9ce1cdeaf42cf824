"""Unsupported models are refused when the explainer is made, with their kind and the way out; others are explained.

Models that need a process group are in test_supported_distributed.py.
"""

import warnings

import pytest
import torch
from support.naive import full_graph, of_class
from support.networks import ConvNet, stateless
from support.refusals import assert_says
from support.tolerances import SAME_INPUTS
from support.torchscript import scripted
from support.unchanged import unchanged
from torch import nn

from gradcam_fast import Explainer, cam, explain

IMAGES = torch.linspace(-1, 1, 3 * 3 * 16 * 16).sin().reshape(3, 3, 16, 16)


def exported(model=None, inputs=IMAGES):
    return torch.export.export(model or stateless(), (inputs,))


def quantised(how):
    """The model that torch.ao.quantization makes by `how(torch.ao.quantization)`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization is deprecated
        return how(pytest.importorskip("torch.ao.quantization"))


def static(quantization, convert=True):
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    engine = torch.backends.quantized.engine
    observed = prepare_fx(stateless(), quantization.get_default_qconfig_mapping(engine), (IMAGES,))
    observed(IMAGES)
    return convert_fx(observed) if convert else observed


def static_trunk(quantization):
    """Quantised, and back to float32 before a convolution and the head."""
    model = nn.Sequential(
        quantization.QuantStub(), nn.Conv2d(3, 4, 3), quantization.DeQuantStub(), nn.Conv2d(4, 4, 3), nn.Flatten()
    ).eval()
    model[1].qconfig = model[0].qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    prepared = quantization.prepare(model)
    prepared(IMAGES)
    return quantization.convert(prepared)


def dynamic(quantization, model=None):
    return quantization.quantize_dynamic(model or stateless(), {nn.Linear, nn.LSTM})


def fake_quantised(quantization):
    """A model in quantisation-aware training: float32 values, rounded, with a gradient."""
    model = quantization.QuantWrapper(stateless()).train()
    model.qconfig = quantization.get_default_qat_qconfig(torch.backends.quantized.engine)
    return quantization.prepare_qat(model).eval()


GRAPH = ("graph", "hook", "nn.Module", "torch.export.unflatten")
FLOAT = ("quantised", "gradient", "floating-point nn.Module")
REFUSED = {
    "exported": (exported, ("is an ExportedProgram", *GRAPH)),
    "the module of an exported one": (lambda: exported().module(), ("is a GraphModule", *GRAPH)),
    "the same compiled": (lambda: torch.compile(exported().module(), backend="eager"), ("is a GraphModule", *GRAPH)),
    "scripted": (lambda: scripted(stateless()), ("is a RecursiveScriptModule", "hooks", "nn.Module")),
    "frozen": (
        lambda: torch.jit.freeze(scripted(stateless())),
        ("is a RecursiveScriptModule", "hooks", "nn.Module"),
    ),
    "DataParallel": (lambda: nn.DataParallel(ConvNet()), ("is a DataParallel", "per device", ".module")),
    "quantised": (lambda: quantised(static), ("has a ConvReLU2d at 'features.0'", *FLOAT)),
    "quantised trunk": (lambda: quantised(static_trunk), ("has a Conv2d at '1'", *FLOAT)),
    "quantised head": (lambda: quantised(dynamic), ("has a Linear at 'head.4'", *FLOAT)),
    "quantised recurrent head": (
        lambda: quantised(lambda q: dynamic(q, nn.Sequential(nn.Conv2d(3, 4, 3), nn.LSTM(14, 4)))),
        ("has a LSTM at '1'", *FLOAT),
    ),
    "a lazy head": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(4)),
        ("has an UninitializedParameter at '2.weight'", "first forward", "run the model"),
    ),
}


@pytest.mark.filterwarnings("ignore")  # of the functions that make the models
@pytest.mark.parametrize("kind", REFUSED)
def test_an_unsupported_model_is_refused_when_the_explainer_is_made(kind):
    make, parts = REFUSED[kind]
    model = make()
    with pytest.raises(TypeError) as refusal:
        Explainer(model)
    assert_says(refusal, TypeError, parts)


@pytest.mark.parametrize("layer", ["features.1", "features.3", "features.4"])
@pytest.mark.parametrize("traced", [torch.fx.symbolic_trace, lambda model: torch.export.unflatten(exported(model))])
def test_a_graph_that_calls_the_layers_is_explained_as_the_original_model(traced, layer):
    model = stateless()
    expected = explain(model, IMAGES, topk=2, layer=layer)
    graph = traced(model)
    with unchanged(graph):
        explanation = explain(graph, IMAGES, topk=2, layer=layer)
    assert torch.equal(explanation.heatmap, expected.heatmap) and torch.equal(explanation.logits, expected.logits)


@pytest.mark.parametrize("part", [scripted, lambda head: exported(head, torch.zeros(3, 12, 4, 4)).module()])
def test_a_scripted_or_exported_part_may_lie_behind_the_named_layer(part):
    model = stateless()
    expected = explain(model, IMAGES, topk=2, layer="features.3")
    model.head = part(model.head)
    with unchanged(model):
        explanation = explain(model, IMAGES, topk=2, layer="features.3")
    torch.testing.assert_close(explanation.heatmap, expected.heatmap, rtol=0, atol=SAME_INPUTS[torch.float32])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layer", ["module.features.0", "module.features.3", "module.features"])
def test_a_model_in_quantisation_aware_training_is_explained_with_its_rounding(layer):
    model = quantised(fake_quantised)
    activations, gradients, logits = full_graph(model, layer, IMAGES, of_class(1))
    choices = {"size": activations.shape[-2:], "method": "hirescam", "normalize": "none", "relu": False}
    explanation = explain(model, IMAGES, target=1, layer=layer, **choices)
    assert torch.equal(explanation.logits, logits)
    assert torch.equal(explanation.heatmap, cam(activations, gradients, **choices)[0]) and explanation.valid.all()
    assert activations.unique().numel() <= 256  # values of eight bits


def test_a_float_model_with_quantisable_operations_is_explained():
    quantized = pytest.importorskip("torch.ao.nn.quantized")

    class Residual(ConvNet):
        def __init__(self):
            super().__init__()
            self.add = quantized.FloatFunctional()
            self.eval()

        def forward(self, images):
            maps = self.features(images)
            return self.head(self.add.add(maps, maps))

    model = Residual()
    activations, gradients, logits = full_graph(model, "features.3", IMAGES, of_class(1))
    with unchanged(model):
        explanation = explain(model, IMAGES, target=1, layer="features.3", size=4, normalize="none", relu=False)
    assert torch.equal(explanation.logits, logits)
    assert torch.equal(explanation.heatmap, cam(activations, gradients, 4, normalize="none", relu=False)[0])


def test_a_lazy_model_is_explained_once_it_has_run():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(4))
    with pytest.raises(TypeError):
        explain(model, IMAGES)
    assert isinstance(model[2].weight, nn.UninitializedParameter)
    with torch.no_grad():
        logits = model(IMAGES)
    with unchanged(model):
        explanation = explain(model, IMAGES, relu=False)
    assert torch.equal(explanation.logits, logits) and explanation.layer == "0" and explanation.valid.all()
