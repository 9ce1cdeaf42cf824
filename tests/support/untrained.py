"""What libraries download, without the download: models get untrained weights, so that examples run offline."""

from __future__ import annotations

from torch import nn


class _Downloaded(dict):
    """Stands for a state_dict that was not downloaded."""


def without_downloads(monkeypatch):
    """Let torchvision, timm and transformers make untrained models where they would download trained ones."""
    _torchvision(monkeypatch)
    _timm(monkeypatch)
    _transformers(monkeypatch)


def _torchvision(monkeypatch):
    from torchvision.models import WeightsEnum

    load = nn.Module.load_state_dict

    def load_unless_downloaded(module, state, *arguments, **options):
        return None if isinstance(state, _Downloaded) else load(module, state, *arguments, **options)

    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: _Downloaded())
    monkeypatch.setattr(nn.Module, "load_state_dict", load_unless_downloaded)


def _timm(monkeypatch):
    import timm.models._builder

    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *_, **__: None)


def _transformers(monkeypatch):
    import transformers

    def model(cls, name, **_):
        return cls(cls.config_class(num_hidden_layers=2))

    def pipeline(task, model):
        assert task == "image-classification" and "/" in model
        return transformers.ImageClassificationPipeline(
            model=transformers.ViTForImageClassification.from_pretrained(model).eval(),
            image_processor=transformers.ViTImageProcessor(),
        )

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(model))
    monkeypatch.setattr(transformers.BaseImageProcessor, "from_pretrained", classmethod(lambda cls, name, **_: cls()))
    monkeypatch.setattr(transformers, "pipeline", pipeline)
