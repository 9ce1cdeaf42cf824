"""Images as arrays (H,W,C): into and out of the model's form, and with maps drawn over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from gradcam_fast import reference

from ..extras import import_extra

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = [
    "create_labels_legend",
    "deprocess_image",
    "preprocess_image",
    "scale_accross_batch_and_channels",
    "scale_cam_image",
    "show_cam_on_image",
    "show_factorization_on_image",
]

_BYTE = 255


def preprocess_image(
    img: NDArray[Any], mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5)
) -> Tensor:
    """An image (H,W,C) as a normalised batch of one, (1,C,H,W); uint8 pixels are divided by 255 first.

    Example:
        >>> preprocess_image(np.full((1, 1, 3), 255, np.uint8)).flatten().tolist()
        [1.0, 1.0, 1.0]
    """
    pixels = torch.from_numpy(np.array(img if img.ndim == 3 else img[..., None]).transpose(2, 0, 1)).contiguous()
    if pixels.dtype == torch.uint8:
        pixels = pixels.float() / _BYTE
    per_channel = [torch.as_tensor(values, dtype=pixels.dtype).reshape(-1, 1, 1) for values in (mean, std)]
    return ((pixels - per_channel[0]) / per_channel[1])[None]


def deprocess_image(img: NDArray[Any]) -> NDArray[np.uint8]:
    """Any array as a picture: centred at middle gray, a standard deviation being a tenth of the range."""
    standard = (img - np.mean(img)) / (np.std(img) + 1e-5)
    return np.uint8(np.clip(standard * 0.1 + 0.5, 0, 1) * _BYTE)


def show_cam_on_image(
    img: NDArray[Any],
    mask: NDArray[Any],
    use_rgb: bool = False,
    colormap: int = cv2.COLORMAP_JET,
    image_weight: float = 0.5,
) -> NDArray[np.uint8]:
    """A map drawn over an image, scaled so that the brightest value is 255.

    Args:
        img: (H,W,3) floating in [0,1].
        mask: the map (H,W) in [0,1].
        use_rgb: whether the image, and so the result, is RGB; else BGR.
        colormap: one of OpenCV's.
        image_weight: weight of the image; the map's colours have the rest.

    Raises:
        ValueError: values of the image above 1, or a weight outside [0,1].
    """
    if np.max(img) > 1:
        raise ValueError(f"img has values up to {np.max(img)}; give floating values in [0,1], such as img / 255")
    if not 0 <= image_weight <= 1:
        raise ValueError(f"image_weight={image_weight} is outside [0,1]")
    colors = cv2.applyColorMap(np.uint8(_BYTE * mask), colormap)
    if use_rgb:
        colors = cv2.cvtColor(colors, cv2.COLOR_BGR2RGB)
    blended = (1 - image_weight) * (np.float32(colors) / _BYTE) + image_weight * img
    brightest = np.max(blended)
    return np.uint8(_BYTE * (blended / brightest if brightest > 0 else blended))


def scale_cam_image(cam: Iterable[NDArray[Any]], target_size: Sequence[int] | None = None) -> NDArray[np.float32]:
    """Each map scaled to [0,1], and then resized to (W,H), or volumes to (W,H,D).

    The range is divided by with 1e-7 added, so that a flat map is zeros. Resized linearly with half-pixel centres, also
    volumes.

    Example:
        >>> scale_cam_image([np.array([[1.0, 3.0]])]).round(3)
        array([[[0., 1.]]], dtype=float32)
    """
    scaled = []
    for image in cam:
        above = image - np.min(image)
        image = np.float32(above / (1e-7 + np.max(above)))
        scaled.append(image if target_size is None else _resize(image, target_size))
    return np.asarray(scaled, dtype=np.float32)


def _resize(image: NDArray[np.float32], size: Sequence[int]) -> NDArray[np.float32]:
    if image.ndim == 2:
        return np.asarray(cv2.resize(image, tuple(size)), dtype=np.float32)
    maps = torch.from_numpy(image)
    for axis, side in enumerate(size):
        maps = reference.upsample(maps, -1 - axis, side)
    return maps.numpy()


def scale_accross_batch_and_channels(tensor: NDArray[Any], target_size: Sequence[int]) -> NDArray[np.float32]:
    """Maps (B,C,h,w), each scaled to [0,1] and resized to (W,H)."""
    scaled = scale_cam_image(tensor.reshape(-1, *tensor.shape[2:]), target_size)
    return scaled.reshape(*tensor.shape[:2], *scaled.shape[1:])


def create_labels_legend(concept_scores: NDArray[Any], labels: Mapping[int, str], top_k: int = 2) -> list[str]:
    """For each row of scores (concepts, classes) a text with the names and scores of the highest, a line each."""
    legends = []
    for scores in concept_scores:
        best = np.argsort(scores)[::-1][:top_k]
        names = (",".join(labels[category].split(",")[:3]) for category in best)
        legends.append("\n".join(f"{name}:{scores[category]:.2f}" for name, category in zip(names, best, strict=True)))
    return legends


def show_factorization_on_image(
    img: NDArray[Any],
    explanations: NDArray[Any],
    colors: Sequence[Any] | None = None,
    image_weight: float = 0.5,
    concept_labels: Sequence[str] | None = None,
) -> NDArray[np.uint8]:
    """Each concept's map (n,H,W) in a colour of its own over an image, at each pixel that of the strongest concept.

    Args:
        img: (H,W,3) RGB, floating in [0,1].
        explanations: maps in [0,1].
        colors: RGB in [0,1] of each concept; None spreads them over the rainbow (needs matplotlib).
        image_weight: weight of the image.
        concept_labels: texts for a legend at the right, as large as the image (needs matplotlib).
    """
    count = len(explanations)
    if colors is None:
        colormaps = import_extra("matplotlib", "colormaps")
        colors = [np.array(colormaps["gist_rainbow"](i / count)) for i in range(count)]
    strongest = explanations.argmax(axis=0)
    hues = cv2.cvtColor(
        np.asarray([[_BYTE * np.asarray(color[:3]) for color in colors]], dtype=np.uint8), cv2.COLOR_RGB2HSV
    )[0]
    painted = hues[strongest]
    painted[..., 2] = np.uint8(_BYTE * explanations.max(axis=0))
    painted = np.float32(cv2.cvtColor(painted, cv2.COLOR_HSV2RGB)) / _BYTE
    picture = np.uint8((img * image_weight + painted * (1 - image_weight)) * _BYTE)
    return picture if concept_labels is None else np.hstack((picture, _legend(concept_labels, colors, picture.shape)))


def _legend(labels: Sequence[str], colors: Sequence[Any], shape: Sequence[int]) -> NDArray[np.uint8]:
    """A picture of a line in each concept's colour with its text beside it."""
    line = import_extra("matplotlib.lines", "Line2D")
    height, width = shape[:2]
    figure = import_extra("matplotlib.figure", "Figure")(figsize=(width / 100, height / 100), dpi=100)
    canvas = import_extra("matplotlib.backends.backend_agg", "FigureCanvasAgg")(figure)
    scale = height / 256
    lines = [line([0], [0], color=color, lw=5 * scale) for color, _ in zip(colors, labels, strict=False)]
    figure.legend(lines, labels, loc="center", fontsize=max(4, int(14 * scale / max(1, len(labels) / 6))))
    canvas.draw()
    return cv2.resize(np.asarray(canvas.buffer_rgba())[..., :3].copy(), (width, height))
