"""Pipelines of transformers are models that bring their preprocessing and the names of their classes."""

import pytest
import timm
import torch
from PIL import Image

import gradcam_fast
from gradcam_fast import Explainer, Preprocess

transformers = pytest.importorskip("transformers")
LABELS = {0: "cat", 1: "dog", 2: "fox"}


def resnet():
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], id2label=LABELS)
    return transformers.ResNetForImageClassification(config).eval()


def processor():
    return transformers.ConvNextImageProcessor(size={"shortest_edge": 48})


def classifier(model=None):
    return transformers.ImageClassificationPipeline(model=model or resnet(), image_processor=processor())


@pytest.fixture
def photo():
    picture = Image.new("RGB", (80, 60), "gray")
    picture.paste("red", (20, 10, 40, 40))
    return picture


def test_a_pipeline_explains_a_photo_as_its_model_with_its_processor_does(photo):
    pipeline = classifier()
    explanation = gradcam_fast.explain(pipeline, photo)
    expected = gradcam_fast.explain(pipeline.model, photo, preprocess=processor())
    assert torch.equal(explanation.heatmap, expected.heatmap) and torch.equal(explanation.boxes, expected.boxes)
    assert explanation.overlay().size == photo.size


def test_its_classes_have_the_pipelines_names_and_probabilities(photo):
    pipeline = classifier()
    best, *_ = Explainer(pipeline)(photo).top(1)[0]
    said = pipeline(photo)[0]
    assert best.name == said["label"] and best.probability == pytest.approx(said["score"], abs=2e-3)
    assert Explainer(pipeline)(photo, target="fox").target.tolist() == [2]


def test_what_is_told_counts_more_than_what_the_pipeline_brings(photo):
    preprocess = Preprocess(32, fit="stretch")
    explainer = Explainer(classifier(), preprocess=preprocess, names=["a", "b", "c"])
    explanation = explainer(photo)
    assert explanation.heatmap.shape == (1, 32, 32) and explanation.names == ("a", "b", "c")


def test_an_explainer_of_a_pipeline_has_its_model_and_can_be_changed(photo):
    pipeline = classifier()
    explainer = Explainer(pipeline)
    assert explainer.model is pipeline.model
    changed = explainer.replace(method="layercam")(photo)
    assert torch.equal(changed.boxes, explainer(photo).boxes)


def test_layers_and_feature_maps_of_a_pipeline_are_those_of_its_model():
    pipeline, images = classifier(), torch.rand(1, 3, 48, 48)
    assert gradcam_fast.layers.list_layers(pipeline, images) == gradcam_fast.layers.list_layers(pipeline.model, images)
    maps = gradcam_fast.features.feature_maps(pipeline, images)
    assert maps.layer == gradcam_fast.explain(pipeline, images).layer


def test_a_pipeline_may_hold_a_compiled_model(photo):
    model = resnet()
    pipeline = classifier(model)
    expected = gradcam_fast.explain(pipeline, photo)
    pipeline.model = torch.compile(model, backend="eager")
    assert torch.equal(gradcam_fast.explain(pipeline, photo).heatmap, expected.heatmap)


def test_the_processor_of_timms_models_in_transformers_is_followed(photo):
    config = {"input_size": (3, 40, 40), "crop_pct": 0.8, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    wrapped = transformers.TimmWrapperImageProcessor(pretrained_cfg=config, architecture="resnet18")
    expected = Preprocess.of(timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=config)))
    assert Preprocess.of(wrapped) == expected
    images, _ = expected(photo)
    difference = images - wrapped(photo, return_tensors="pt")["pixel_values"]
    assert difference.abs().max() < 0.02


def test_a_pipeline_for_text_says_nothing_of_photos():
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    model = transformers.BertForSequenceClassification(config).eval()
    tokenizer = transformers.BertTokenizer(
        vocab={word: number for number, word in enumerate("[PAD] [UNK] [CLS] [SEP] [MASK] a b c".split())}
    )
    pipeline = transformers.TextClassificationPipeline(model=model, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="how they become the model's input is not known"):
        gradcam_fast.explain(pipeline, Image.new("RGB", (8, 8)))
