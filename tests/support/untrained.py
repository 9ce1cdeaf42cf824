"""What libraries download, without the download: models get untrained weights, so that examples run offline."""

from __future__ import annotations

from torch import nn

from gradcam_fast.class_names import imagenet_class_names


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

    def of_imagenet(kind):
        return kind(num_hidden_layers=2, id2label=dict(enumerate(imagenet_class_names())))

    def model(cls, name, *_, config=None, **__):
        kind = transformers.ViTForImageClassification if cls.__name__.startswith("Auto") else cls
        return kind(config or of_imagenet(kind.config_class))

    def config(cls, name, **_):
        return of_imagenet(transformers.ViTConfig)

    def processor(cls, name, **_):
        return transformers.ViTImageProcessor() if cls.__name__.startswith("Auto") else cls()

    replaced = {
        model: (transformers.PreTrainedModel, transformers.AutoModelForImageClassification),
        config: (transformers.AutoConfig,),
        processor: (transformers.BaseImageProcessor, transformers.AutoImageProcessor),
    }
    for function, kinds in replaced.items():
        for kind in kinds:
            monkeypatch.setattr(kind, "from_pretrained", classmethod(function))
