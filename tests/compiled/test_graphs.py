"""When a graph serves a call, when another one is made, and what is refused.

The graphs run as they were traced: `test_inductor.py` compiles some.
"""

import threading
from collections import OrderedDict

import pytest
import torch
from support.compiled_explanations import assert_same, random_images
from support.networks import (
    ConvNet,
    Counting,
    PatchNet,
    Repeating,
    TwoInputs,
    conv_relu,
    pooled_head,
    stateless,
)
from support.unchanged import unchanged
from torch.utils.checkpoint import checkpoint

from gradcam_fast import Explainer
from gradcam_fast._compiled.graphs import MAX_GRAPHS, GraphRunner
from gradcam_fast.exceptions import CannotCompile


def graph_runner(model, *, layer=None, call=None, **choices):
    return GraphRunner(Explainer(model, layer=layer, call=call), lambda traced: traced.graph, **choices)


def assert_explains(runner, *asked, graphs=None):
    assert_same(runner(*asked), runner._explainer(*asked))
    assert runner.eager_because is None
    if graphs is not None:
        assert len(runner.records) == graphs


def test_one_graph_serves_all_batches_of_several_images_and_another_one_image():
    runner = graph_runner(stateless())
    for batch in (3, 2, 8):
        assert_explains(runner, random_images(batch), graphs=1)
    assert_explains(runner, random_images(1), graphs=2)
    assert_explains(runner, random_images(1)[0], graphs=2)


def test_a_fixed_batch_has_a_graph_for_each_number_of_images():
    runner = graph_runner(stateless(), dynamic_batch=False)
    for graphs, batch in enumerate((2, 3, 4), 1):
        assert_explains(runner, random_images(batch), graphs=graphs)


def test_other_sides_have_another_graph_unless_sides_are_free():
    images = random_images(2), random_images(2, 20, 24)
    fixed, free = graph_runner(stateless()), graph_runner(stateless(), dynamic_sides=True)
    for graphs, batch in enumerate(images, 1):
        assert_explains(fixed, batch, graphs=graphs)
        assert_explains(free, batch, graphs=1)


def test_classes_are_an_input():
    runner = graph_runner(stateless())
    for target in (3, [0, 1], torch.tensor([4, 2])):
        assert_explains(runner, random_images(2), target, graphs=1)
    assert_explains(runner, random_images(2), [[0, 1]], graphs=2)
    assert_explains(runner, random_images(2), None, 3, graphs=3)
    assert_explains(runner, random_images(2), graphs=4)


def test_a_class_out_of_range_is_refused_as_by_the_explainer():
    runner = graph_runner(stateless())
    runner(random_images(2), 1)
    with pytest.raises(ValueError, match="target 5 is out of range for a model with 5 classes"):
        runner(random_images(2), 5)


def test_channels_last_and_other_strides():
    runner = graph_runner(stateless())
    images = random_images(2)
    assert_explains(runner, images, graphs=1)
    assert_explains(runner, images.to(memory_format=torch.channels_last), graphs=2)
    assert_explains(runner, random_images(4, 16, 32)[::2, :, :, ::2], graphs=2)


def test_other_dtypes_have_another_graph():
    model = stateless()
    runner = graph_runner(model)
    assert_explains(runner, random_images(2), graphs=1)
    model.double()
    assert runner(random_images(2).double()).logits.dtype == torch.float64
    assert len(runner.records) == 1  # the model has changed, so the first graph is gone


def test_autocast_counts_as_it_is_at_the_call():
    runner = graph_runner(stateless())
    images = random_images(2)
    plain = runner(images)
    with torch.autocast("cpu", torch.bfloat16):
        low = runner(images)
        assert low.logits.dtype == torch.bfloat16
        assert torch.equal(low.logits, runner._explainer(images).logits)
    assert torch.equal(runner(images).logits, plain.logits) and len(runner.records) == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_results_are_ordinary_tensors_in_every_grad_mode(mode):
    runner = graph_runner(stateless())
    with mode():
        explanation = runner(random_images(2))
    assert not explanation.heatmap.requires_grad and not explanation.heatmap.is_inference()


def test_an_empty_batch_is_explained_eagerly():
    runner = graph_runner(stateless())
    assert runner(random_images(0)).heatmap.shape == (0, 16, 16)
    assert runner.eager_because == "the batch is empty"


def test_other_inputs_of_the_model_are_inputs_of_the_graph():
    runner = graph_runner(TwoInputs(), layer="features")
    assert_explains(runner, (random_images(2), torch.rand(2)), graphs=1)
    assert_explains(runner, {"images": random_images(2), "shift": torch.rand(2)}, graphs=2)


def test_callables_with_the_same_code_and_values_share_a_graph():
    runner = graph_runner(stateless())
    score_of = lambda number: lambda logits: logits[:, number]  # noqa: E731
    assert_explains(runner, random_images(2), score_of(1), graphs=1)
    assert_explains(runner, random_images(2), score_of(1), graphs=1)
    assert_explains(runner, random_images(2), score_of(2), graphs=2)


def test_the_oldest_graphs_are_forgotten():
    runner = graph_runner(stateless(), dynamic_batch=False)
    for batch in range(1, MAX_GRAPHS + 3):
        runner(random_images(batch))
    assert len(runner.records) == MAX_GRAPHS
    assert_explains(runner, random_images(1))


def test_threads_get_the_same_explanations_as_one_by_one():
    runner = graph_runner(stateless())
    batches = [random_images(batch) for batch in (2, 3, 4, 2)]
    results = [None] * len(batches)

    def explain(place):
        results[place] = runner(batches[place])

    threads = [threading.Thread(target=explain, args=(place,)) for place in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runner.records) == 1
    for result, batch in zip(results, batches, strict=True):
        assert_same(result, runner._explainer(batch))


class Checkpointed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model, self.tail = stateless(), conv_relu(12)
        self.head = pooled_head(8)

    def forward(self, images):
        return self.head(checkpoint(self.tail, self.model.features(images), use_reentrant=False))


def with_a_compiled_part():
    model = stateless()
    model.features = torch.compile(model.features, backend="eager")
    return model


def with_parametrized_weights():
    model = stateless()
    torch.nn.utils.parametrizations.weight_norm(model.head[-1])
    return model.eval()


def of_rank(convolution, pooling, channels):
    return torch.nn.Sequential(
        convolution(channels, 6, 3), torch.nn.ReLU(), pooling(1), torch.nn.Flatten(), torch.nn.Linear(6, 5)
    ).eval()


KINDS = {
    "first call": (lambda: Repeating(3), {"layer": "block", "call": 0}, (3, 16, 16)),
    "every call": (lambda: Repeating(3), {"layer": "block", "call": "all"}, (3, 16, 16)),
    "series": (lambda: of_rank(torch.nn.Conv1d, torch.nn.AdaptiveAvgPool1d, 3), {}, (3, 32)),
    "volumes": (lambda: of_rank(torch.nn.Conv3d, torch.nn.AdaptiveAvgPool3d, 1), {}, (1, 8, 8, 8)),
    "compiled part": (with_a_compiled_part, {}, (3, 16, 16)),
    "parametrized weights": (with_parametrized_weights, {}, (3, 16, 16)),
    "checkpoint": (lambda: Checkpointed().eval(), {"layer": "model.features"}, (3, 16, 16)),
    "dense head": (
        lambda: torch.nn.Sequential(conv_relu(), torch.nn.Flatten(), torch.nn.Linear(8 * 256, 5)).eval(),
        {},
        (3, 16, 16),
    ),
}


@pytest.mark.parametrize(("network", "choices", "shape"), KINDS.values(), ids=KINDS)
def test_models_of_many_kinds(network, choices, shape):
    runner = graph_runner(network(), **choices)
    for batch in (3, 5):
        assert_explains(runner, torch.randn(batch, *shape), graphs=1)


def double_in_place(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)


def step_through_data(model):
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)


CHANGES = {
    "constant, which is no parameter": lambda model: model.shift.add_(1),
    "data of a constant": lambda model: setattr(model.shift, "data", torch.full((1,), 3.0)),
    "in place": double_in_place,
    "through data": step_through_data,
    "loaded state": lambda model: model.load_state_dict(stateless().state_dict()),
    "assigned state": lambda model: model.load_state_dict(stateless().state_dict(), assign=True),
    "new parameter": lambda model: setattr(
        model.features[0], "weight", torch.nn.Parameter(torch.randn_like(model.features[0].weight))
    ),
    "new data": lambda model: setattr(model.head[-1].weight, "data", torch.randn(5, 48)),
    "buffer in place": lambda model: model.features[1].running_mean.add_(1),
    "new buffer": lambda model: setattr(model.features[1], "running_mean", torch.ones(8)),
    "new module": lambda model: model.features.__setitem__(2, torch.nn.GELU().eval()),
    "first module of a container": lambda model: model.nothing.append(torch.nn.ReLU().eval()),
    "new dictionary of modules": lambda model: vars(model.features).update(
        _modules={**model.features._modules, "2": torch.nn.GELU().eval()}
    ),
    "numpy": lambda model: model.head[-1].weight.detach().numpy().__imul__(-1),
}


class Shifted(torch.nn.Sequential):
    """Adds a tensor that is neither parameter nor buffer."""

    def __init__(self):
        super().__init__(OrderedDict(stateless().named_children()))
        self.nothing = torch.nn.Sequential()
        self.shift = torch.ones(1)
        self.eval()

    def forward(self, images):
        return super().forward(images) + self.shift


@pytest.mark.filterwarnings("ignore:the model has changed")
@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_model_is_explained_as_it_is_now(change, freeze):
    model = Shifted()
    runner = graph_runner(model, freeze=freeze, layer="features")
    images = random_images(2)
    before = runner(images)
    change(model)
    assert not torch.equal(runner(images).logits, before.logits)
    assert_explains(runner, images, graphs=1)


def test_values_in_the_same_tensors_need_no_new_graph_without_freeze():
    model = stateless()
    runner = graph_runner(model, freeze=False)
    runner(random_images(2))
    record = runner.records[0]
    double_in_place(model)
    runner(random_images(2))
    assert runner.records[0] is record


def test_a_new_compilation_for_a_changed_model_is_said_once():
    model = stateless()
    runner = graph_runner(model)
    runner(random_images(2))
    double_in_place(model)
    with pytest.warns(RuntimeWarning, match="the model has changed since its explanation was compiled"):
        runner(random_images(2))


class Branching(ConvNet):
    def forward(self, images):
        logits = super().forward(images)
        if logits.sum() > 1e9:
            return 2 * logits
        return logits


class Masking(ConvNet):
    def forward(self, images):
        maps = self.features(images)
        return self.head(maps) + float(maps[maps > 0].detach().numpy().mean())


def add_hook(model):
    model.features[0].register_forward_hook(lambda *_: None)


def add_hook_to_new_dictionary(model):
    model.features[0]._forward_hooks = OrderedDict()
    add_hook(model)


REFUSED = {
    "branch": (Branching, None, r"values of a tensor decide.*test_graphs\.py:\d+: if logits\.sum\(\) > 1e9:"),
    "numpy": (Masking, None, r"test_graphs\.py:\d+: return self\.head\(maps\) \+ float\(maps\[maps > 0\]"),
    "training": (ConvNet, lambda model: model.train(), "is in training mode"),
    "a part in training": (ConvNet, lambda model: model.head[3].train(), "module 'head.3' is in training mode"),
    "hook": (ConvNet, add_hook, "module 'features.0' has a hook"),
    "buffers": (Counting, None, "writes to its buffers"),
}


@pytest.mark.parametrize(("network", "prepare", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_traced_is_refused_with_its_reason(network, prepare, message):
    model = network()
    if prepare:
        prepare(model)
    with pytest.raises(CannotCompile, match=message):
        graph_runner(model, layer="features")(random_images(2))


@pytest.mark.parametrize(("network", "prepare", "message"), REFUSED.values(), ids=REFUSED)
def test_the_fallback_explains_eagerly_and_says_why(network, prepare, message):
    model = network()
    if prepare:
        prepare(model)
    runner = graph_runner(model, layer="features", fallback=True)
    images = random_images(2)
    with pytest.warns(RuntimeWarning, match=message):
        result = runner(images)
    assert runner.eager_because is not None
    assert torch.equal(result.heatmap, runner._explainer(images).heatmap)


LATER = {
    "training": lambda model: model.train(),
    "a part in training": lambda model: model.head[3].train(),
    "hook": add_hook,
    "hook in a new dictionary": add_hook_to_new_dictionary,
}


@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
def test_what_is_done_to_the_model_later_is_noticed(later):
    model = stateless()
    runner = graph_runner(model)
    runner(random_images(2))
    later(model)
    with pytest.warns(RuntimeWarning, match="has changed"), pytest.raises(CannotCompile):
        runner(random_images(2))
    model.eval()
    model.features[0]._forward_hooks.clear()
    assert_explains(runner, random_images(2))


def test_hooks_of_all_modules_are_noticed():
    runner = graph_runner(stateless(), fallback=True)
    runner(random_images(2))
    seen = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        with pytest.warns(RuntimeWarning, match="have a hook"):
            runner(random_images(2))
    finally:
        handle.remove()
    assert seen


def test_when_is_refused():
    explainer = Explainer(stateless(), when=lambda logits: logits[:, 0] > 0)
    with pytest.raises(CannotCompile, match="when="):
        GraphRunner(explainer, lambda traced: traced.graph)(random_images(2))


def test_several_pictures_a_sample_are_refused():
    class Clip(ConvNet):
        def forward(self, clips):
            return super().forward(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).mean(1)

    with pytest.raises(CannotCompile, match="several pictures"):
        graph_runner(Clip(), layer="features")(torch.randn(2, 3, 3, 16, 16))


class Remembering(PatchNet):
    """Keeps what it saw last."""

    def __init__(self):
        super().__init__(1)
        self.last = None

    def forward(self, images):
        self.last = self.patch(images)
        return super().forward(images)


def test_tracing_leaves_the_model_as_it_was():
    model = Remembering()
    runner = graph_runner(model)
    with unchanged(model):
        runner(random_images(2))
    assert type(model.last) is torch.Tensor and model.last.untyped_storage().data_ptr()
