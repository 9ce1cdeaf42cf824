"""What all methods that run the model on changed copies have in common."""

import threading
from dataclasses import dataclass

import pytest
import torch
from support.networks import ConvNet, LogitsAndFeatures, conv_relu, pooled_head
from support.unchanged import unchanged
from torch import nn

import gradcam_fast
from gradcam_fast.exceptions import HeadNotReplayable
from gradcam_fast.methods import METHODS

LONG = ["ablation", "reciprocam", "scorecam"]


class Curved(ConvNet):
    """A ConvNet with a head that is not affine."""

    def forward(self, images):
        return super().forward(images).tanh()


def explain(model, images, method, **choices):
    return gradcam_fast.explain(model, images, **{"layer": "features.4", "method": method} | choices)


@pytest.mark.parametrize("method", METHODS)
def test_prediction_and_score_are_those_of_the_model(method, images):
    model = Curved()
    logits = model(images)
    explanation = explain(model, images, method, topk=2)
    assert torch.allclose(explanation.logits, logits, atol=1e-6)
    assert torch.equal(explanation.target, logits.topk(2).indices)
    assert torch.allclose(explanation.score, logits.topk(2).values, atol=1e-6)
    assert explanation.heatmap.shape == (3, 2, 16, 16) and explanation.heatmap.dtype == torch.float32
    assert 0 <= explanation.heatmap.min() and explanation.heatmap.max() <= 1
    assert not any(getattr(explanation, name).requires_grad for name in ("heatmap", "logits", "score", "raw_max"))


@pytest.mark.parametrize("method", METHODS)
def test_normalisation_size_and_relu_are_those_of_the_op(method, images):
    model = Curved()
    raw = explain(model, images, method, normalize="none", relu=False)
    cut = explain(model, images, method, normalize="max", size=(8, 20))
    assert cut.heatmap.shape == (3, 8, 20)
    assert torch.allclose(cut.heatmap.amax((1, 2))[cut.valid], torch.ones(int(cut.valid.sum())))
    assert torch.allclose(raw.raw_min, raw.heatmap.amin((1, 2))) and torch.allclose(
        raw.raw_max, raw.heatmap.amax((1, 2))
    )
    scaled = explain(model, images, method, relu=False).heatmap
    low, high = raw.raw_min[:, None, None], raw.raw_max[:, None, None]
    assert torch.allclose(scaled, (raw.heatmap - low) / (high - low), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_image_that_is_not_finite_leaves_the_others_as_they_are(method, value, images):
    model = Curved()
    expected = explain(model, images, method, target=1)
    broken = images.clone()
    broken[1, 0, 3, 3] = value
    explanation = explain(model, broken, method, target=1)
    assert explanation.reason[1] == "not finite" and not explanation.heatmap[1].any()
    assert torch.equal(explanation.heatmap[::2], expected.heatmap[::2])
    assert torch.equal(explanation.raw_max[::2], expected.raw_max[::2])


@pytest.mark.parametrize("method", LONG)
def test_an_image_has_the_same_map_alone_and_in_a_batch(method, images):
    model = Curved()
    batch = explain(model, images, method, target=1).heatmap
    for place, image in enumerate(images.split(1)):
        assert (explain(model, image, method, target=1).heatmap[0] - batch[place]).abs().max() <= 1e-4


@pytest.mark.parametrize("method", LONG)
def test_only_the_images_that_when_chooses_are_run(method, images):
    model = Curved()
    expected = explain(model, images, method, target=1, chunk=32)
    model.runs.clear()
    explainer = gradcam_fast.Explainer(
        model, layer="features.4", method=method, chunk=32, when=lambda logits: torch.tensor([False, True, False])
    )
    some = explainer(images, 1)
    assert torch.equal(some.heatmap[1], expected.heatmap[1]) and some.reason[::2] == ["not chosen"] * 2
    assert len(model.runs) <= 4  # the prediction, and for one image a recording with its check and a chunk


@pytest.mark.parametrize("method", LONG)
@pytest.mark.parametrize("layer", ["features.4", None, ["features.1", "features.4"]])
def test_the_model_stays_as_it_is(method, layer, images):
    model = Curved()
    with unchanged(model):
        explain(model, images, method, layer=layer)


@pytest.mark.parametrize("method", LONG)
@pytest.mark.parametrize("run", [1, 2, 4])
def test_the_model_stays_as_it_is_when_it_raises(method, run, images):
    model = Curved()

    def broken(_):
        if model.calls == run:
            raise RuntimeError("broken")

    model.at_head = broken
    with torch.inference_mode(), unchanged(model), pytest.raises(RuntimeError, match="broken"):
        explain(model, images, method)
    assert nn.Module.__call__ is nn.Module._wrapped_call_impl


@pytest.mark.parametrize("method", LONG)
def test_random_numbers_of_the_caller_are_not_drawn(method, images):
    model = Curved()
    before = torch.random.get_rng_state()
    explain(model, images, method)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("method", LONG)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_callers_grad_mode_does_not_matter(method, mode, images):
    model = Curved()
    expected = explain(model, images, method).heatmap
    with mode():
        assert torch.equal(explain(model, images, method).heatmap, expected)


@pytest.mark.parametrize("method", LONG)
def test_a_module_in_training_mode_that_mixes_images_is_refused_by_name(method, images):
    model = Curved().train()
    with unchanged(model), pytest.raises(ValueError, match=rf"method='{method}'.*BatchNorm.*model.eval\(\)"):
        explain(model, images, method)


@pytest.mark.parametrize("method", LONG)
def test_several_pictures_a_sample_are_refused(method, images):
    class Clip(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.head = conv_relu(), pooled_head(8)

        def forward(self, clips):
            return self.head(self.trunk(clips.flatten(0, 1))).unflatten(0, clips.shape[:2]).mean(1)

    with pytest.raises(ValueError, match=rf"method='{method}'.*'trunk' has 2 maps a sample.*one by one"):
        explain(Clip().eval(), torch.randn(2, 2, 3, 16, 16), method, layer="trunk")


@pytest.mark.parametrize("method", ["ablation", "reciprocam"])
def test_a_head_that_mixes_the_images_of_a_batch_is_refused(method, images):
    class Mixing(ConvNet):
        def forward(self, images):
            logits = super().forward(images)
            return (logits - 3 * logits.mean(0)).tanh()

    with pytest.raises(HeadNotReplayable, match=r"'features.1' cannot be run again.*mixed"):
        explain(Mixing(), images, method, layer="features.1", target=1)


@pytest.mark.parametrize("method", LONG)
def test_two_threads_explain_with_one_model_at_the_same_time(method, images):
    model, results = Curved(), {}
    expected = {k: explain(model, images[k : k + 1], method).heatmap for k in range(3)}

    def work(k):
        results[k] = [explain(model, images[k : k + 1], method).heatmap for _ in range(5)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(heatmap, expected[k]) for k in range(3) for heatmap in results[k])


@pytest.mark.parametrize(("method", "runs_per_image"), [("ablation", 12), ("reciprocam", 17), ("scorecam", 12)])
def test_progress_is_told(method, runs_per_image, images, capsys):
    model, told, total = Curved(), [], 3 * runs_per_image
    with torch.no_grad():
        model.features[3].bias += 10  # so that no channel is constant behind the ReLU
    explain(model, images, method, chunk=7, progress=lambda done, of: told.append((done, of)))
    assert told[-1] == (total, total) and {of for _, of in told} == {total}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    explain(model, images[:1], method, progress=True)
    shown = capsys.readouterr()
    assert f"{method}: {runs_per_image} of {runs_per_image}\n" in shown.err and not shown.out
    explain(model, images[:1], method)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"chunk": 0}, ValueError, "chunk=0 is below 1"),
        ({"chunk": 2.5}, TypeError, "chunk=2.5 is a float"),
        ({"chunk": True}, TypeError, "chunk=True is a bool"),
        ({"progress": "yes"}, TypeError, "progress='yes' is a str; give a callable"),
        ({"method": "score-cam"}, ValueError, "method='score-cam' is unknown; choose one of .*'scorecam'"),
        ({"cuda_graph": True}, ValueError, "both method='ablation' and cuda_graph=True"),
    ],
)
def test_choices_that_cannot_work_are_refused_before_the_model_runs(choices, error, message, images):
    model = Curved()
    with pytest.raises(error, match=message):
        gradcam_fast.Explainer(model, **{"method": "ablation"} | choices)(images)
    assert model.calls == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("smooth", [None, "augment"])
def test_an_empty_batch_has_no_maps(method, smooth):
    explanation = explain(Curved(), torch.zeros(0, 3, 16, 16), method, smooth=smooth)
    assert explanation.heatmap.shape == (0, 16, 16) and explanation.reason == []


@pytest.mark.parametrize("method", METHODS)
def test_images_made_in_inference_mode(method, images):
    model = Curved()
    with torch.inference_mode():
        inference = images.clone()
        explanation = explain(model, inference, method)
    assert torch.equal(explanation.heatmap, explain(model, images, method).heatmap)
    assert torch.equal(explain(model, inference, method).heatmap, explanation.heatmap)


@pytest.mark.parametrize("method", METHODS)
def test_autocast(method, images):
    model = Curved()
    expected = explain(model, images, method, target=1, relu=False).heatmap
    with torch.autocast("cpu", torch.bfloat16):
        explanation = explain(model, images, method, target=1, relu=False)
    correlation = torch.corrcoef(torch.stack([explanation.heatmap.flatten(), expected.flatten()]))[0, 1]
    assert explanation.valid.all() and correlation > 0.9


@pytest.mark.parametrize("method", LONG)
def test_buffers_that_a_prediction_changes_are_changed_once(method, images):
    class Counts(Curved):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros((), dtype=torch.long))

        def forward(self, images):
            self.seen += len(images)
            return super().forward(images)

    model = Counts()
    explain(model, images, method)
    assert model.seen == 3


@pytest.mark.parametrize("method", LONG)
def test_compiled_parts_run_eagerly(method, images):
    model = Curved()
    expected = explain(model, images, method).heatmap
    model.features[3] = torch.compile(model.features[3], backend="eager")
    with torch.no_grad():
        model(images)
    assert torch.equal(
        explain(model, images, method, layer="features.3").heatmap,
        explain(model, images, method, layer=model.features[3]).heatmap,
    )
    assert torch.equal(explain(model, images, method).heatmap, expected)


@pytest.mark.parametrize("method", LONG)
def test_half_precision_inside_a_model_that_returns_float32(method, images):
    class Mixed(Curved):
        def forward(self, images):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(images).float()

    model = Mixed()
    explanation = explain(model, images, method, target=1, relu=False)
    with torch.autocast("cpu", torch.bfloat16):
        again = explain(model, images, method, target=1, relu=False)
    assert explanation.valid.all() and again.valid.all()


@dataclass
class Output:
    logits: torch.Tensor
    loss: float = 0.5


@pytest.mark.parametrize("method", LONG)
@pytest.mark.parametrize(
    "wrap",
    [
        Output,
        lambda logits: {"logits": logits, "more": [logits * 2]},
        lambda logits: LogitsAndFeatures(logits, logits * 2),
        lambda logits: (logits, None, "text"),
    ],
    ids=["dataclass", "dict", "named tuple", "tuple"],
)
def test_a_callable_target_of_a_container(method, wrap, images):
    def logits_of(output):
        if isinstance(output, dict):
            return output["logits"]
        return output.logits if hasattr(output, "logits") else output[0]

    model = Curved()
    expected = explain(model, images, method, target=lambda logits: logits[:, 1]).heatmap

    class Wrapping(Curved):
        def forward(self, images):
            return wrap(super().forward(images))

    wrapping = Wrapping()
    wrapping.load_state_dict(model.state_dict())
    explanation = explain(wrapping, images, method, target=lambda output: logits_of(output)[:, 1])
    assert torch.equal(explanation.heatmap, expected)
