"""A traced graph computes what the eager explanation does, for other batches than the one it was traced with."""

import pytest
import torch
from support.compiled_explanations import assert_same, random_images
from support.networks import ConvNet, PatchNet, Repeating, TwoInputs, Wrapped, stateless
from support.tolerances import COMPILED_LOGITS

from gradcam_fast import Explainer
from gradcam_fast._compiled.tracing import trace
from gradcam_fast.exceptions import CannotCompile


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"method": "gradcam++"},
        {"method": "layercam", "normalize": "max", "relu": False, "size": (20, 12)},
        {"layer": ["features.1", "features.3"], "normalize": "none"},
        {"layer": "features.4", "method": "eigencam"},
        {"layer": "features.4", "method": "eigengradcam"},
        {"layer": "features.4", "smooth": "eigen"},
    ],
    ids=["defaults", "gradcam++", "layercam", "two layers", "eigencam", "eigengradcam", "smooth=eigen"],
)
@pytest.mark.parametrize(
    "asked",
    [{}, {"topk": 3}, {"target": 2}, {"target": [[1, 4]]}, {"target": lambda logits: logits[:, 0] - logits[:, 1]}],
    ids=["highest", "topk", "class", "two classes", "callable"],
)
def test_a_graph_serves_other_batches(choices, asked):
    explainer = Explainer(stateless(), **choices)
    traced = trace(explainer, random_images(3), **asked)
    assert traced.record.batch[0] == 2 and traced.shapes.hold([(5, 3, 16, 16)])
    images = random_images(5)
    assert_same(traced.record.explanation(traced.graph(images)), explainer(images, **asked))


@pytest.mark.parametrize(
    ("choices", "named"),
    [
        ({"method": "ablation"}, "method='ablation'"),
        ({"method": "reciprocam"}, "method='reciprocam'"),
        ({"method": "scorecam", "smooth": "augment"}, "method='scorecam'"),
        ({"method": "eigencam", "smooth": "augment"}, "smooth='augment'"),
        ({"smooth": ["noise", "eigen"]}, r"smooth=\['noise', 'eigen'\]"),
    ],
)
def test_what_takes_several_runs_of_the_model_is_refused(choices, named):
    with pytest.raises(CannotCompile, match=f"{named} decides by values, or runs the model again; use .*eigencam"):
        trace(Explainer(stateless(), layer="features.4", **choices), random_images(2))


@pytest.mark.parametrize("targets", [(), (2,)], ids=["one", "two"])
def test_classes_can_be_an_input(targets):
    explainer = Explainer(stateless())
    traced = trace(explainer, random_images(3), torch.randint(5, (3, *targets)), class_input=True)
    assert traced.record.inputs[-1].at == "target" and traced.record.inputs[-1].shape == (None, *targets)
    images, classes = random_images(4), torch.randint(5, (4, *targets))
    assert_same(traced.record.explanation(traced.graph(images, classes)), explainer(images, classes))


def test_a_class_out_of_range_has_no_score_and_no_heatmap():
    traced = trace(Explainer(stateless()), random_images(3), [0, 1, 2], class_input=True)
    explanation = traced.record.explanation(traced.graph(random_images(3), torch.tensor([1, 5, -1])))
    assert explanation.score.isnan().tolist() == [False, True, True]
    assert explanation.reason[1:] == ["no gradient", "no gradient"] and not explanation.heatmap[1:].any()


def test_sides_can_be_free():
    explainer = Explainer(stateless())
    traced = trace(explainer, random_images(2), dynamic_sides=True)
    images = random_images(3, 20, 28)
    assert traced.shapes.hold([tuple(images.shape)])
    assert_same(traced.record.explanation(traced.graph(images)), explainer(images))


def test_one_image_is_traced_for_one_image_or_for_several():
    explainer, images = Explainer(stateless()), random_images(1)
    fixed = trace(explainer, images, dynamic_batch=False)
    assert fixed.record.batch == (1, 1) and not fixed.shapes.hold([(2, 3, 16, 16)])
    assert_same(fixed.record.explanation(fixed.graph(images)), explainer(images))
    assert trace(explainer, images).shapes.hold([(2, 3, 16, 16)])


def test_a_model_that_fixes_the_batch_is_traced_for_that_batch():
    """`len(images)` is a plain number."""
    explainer, images = Explainer(ConvNet()), random_images(3)
    traced = trace(explainer, images)
    assert traced.record.batch == (3, 3) and not traced.shapes.hold([(4, 3, 16, 16)])
    assert_same(traced.record.explanation(traced.graph(images)), explainer(images))


@pytest.mark.parametrize("class_tokens", [0, 1])
def test_tokens_are_traced(class_tokens):
    explainer, images = Explainer(PatchNet(class_tokens)), random_images(3)
    traced = trace(explainer, images, topk=2)
    assert_same(traced.record.explanation(traced.graph(images)), explainer(images, topk=2))


def test_every_input_of_the_model_is_an_input_of_the_graph():
    explainer, images = Explainer(TwoInputs(), layer="features"), random_images(3)
    traced = trace(explainer, (images, torch.ones(3)))
    assert [tensor.at for tensor in traced.record.inputs] == [0, 1]
    shift = torch.rand(3)
    assert_same(traced.record.explanation(traced.graph(images, shift)), explainer((images, shift)))


def test_logits_come_back_in_their_container():
    explainer, images = Explainer(Wrapped(lambda logits: {"logits": logits, "twice": 2 * logits})), random_images(2)
    target = lambda output: output["twice"][:, 1]  # noqa: E731
    traced = trace(explainer, images, target)
    explanation, expected = traced.record.explanation(traced.graph(images)), explainer(images, target)
    assert explanation.target is None and list(explanation.logits) == ["logits", "twice"]
    torch.testing.assert_close(explanation.logits["twice"], expected.logits["twice"], rtol=0, atol=COMPILED_LOGITS)


@pytest.mark.parametrize("kind", ["pooled", "two targets", "every call", "tokens", "other input", "no gradients"])
def test_only_samples_that_are_not_finite_are_marked(kind):
    asked, choices, model = {}, {}, stateless()
    if kind == "two targets":
        asked = {"topk": 2}
    elif kind == "every call":
        model, choices = Repeating(3), {"layer": "block", "call": "all"}
    elif kind == "tokens":
        model = PatchNet(1)
    elif kind == "other input":
        model = TwoInputs()
    elif kind == "no gradients":
        choices = {"layer": "features.4", "method": "eigencam"}
    explainer, images = Explainer(model.eval(), **choices), random_images(4)
    other = [torch.rand(4)] if kind == "other input" else []
    traced = trace(explainer, (images, *other) if other else images, **asked, dynamic_batch=not other)
    (other or [images])[0][1] = torch.nan
    explanation = traced.record.explanation(traced.graph(images, *other))
    assert not explanation.valid[1].any() and explanation.raw_max[1].isnan().all() and not explanation.heatmap[1].any()
    assert explanation.raw_max[[0, 2, 3]].isfinite().all()
