"""The public function ``overlay``: blends coloured heatmaps over the images they explain, on their device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from ..photos import are_photos, photo_tensor, read_photos
from .colormaps import check_range, check_tensor, colorize, default_colormap, on_unit_scale
from .edges import outlines
from .placement import WAY_OUT, boxes_of, place

if TYPE_CHECKING:
    from torch import Tensor

    PerChannel = float | Iterable[float] | Tensor

__all__ = ["overlay"]


def overlay(
    images: Any,
    heatmap: Tensor,
    *,
    box: Any = None,
    colormap: str | None = None,
    alpha: float | Tensor = 0.5,
    signed: bool = False,
    edges: bool = False,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
) -> Any:
    """Blend coloured heatmaps over the images they explain.

    The pixels are those of OpenCV's ``addWeighted(image, 1 - alpha, applyColorMap(heatmap), alpha, 0)`` to within one
    of 255 levels. Values outside the ranges below are clamped, as resizing may overshoot them, and NaN counts as 0.
    Values far outside raise an error; this is checked on the CPU only, because the host would wait for a device.

    Args:
        images: (B,3,H,W) RGB, (B,1,H,W) grayscale, or one image (C,H,W) or (H,W): uint8, floating in [0,1], or floating
            and normalised as ``(image - mean) / std`` if ``mean`` and ``std`` are given. Or a photo as
            :class:`gradcam_fast.Preprocess` takes it: a path, a PIL image, an array (H,W,C); or a list of photos of any
            sizes, one for each heatmap.
        heatmap: floating in [0,1], on the images' device: (B,H,W), or (B,K,H,W) for K maps of each image, or (H,W).
        box: the part of the photo that the network saw, (left, top, right, bottom) in pixels, or one for each photo:
            what ``Preprocess`` returns. The heatmap, of any resolution, is laid there, and the photo is untouched
            outside. "whole" lays it over the whole photo. None: heatmap and image have the same pixels.
        colormap: an OpenCV colormap in lower case (``jet``, ``viridis``, ...) or, if matplotlib is installed, one of
            its colormaps; for a name that both have, OpenCV's is used. In ``jet`` 1 is dark red and 0 dark blue. None
            is ``jet``, and ``coolwarm`` for signed maps: 1 red, 0 gray, -1 blue.
        alpha: weight of the heatmap's colour, from 0 (image only) to 1 (colour only): a number, or a tensor of the
            heatmap's shape. ``alpha=heatmap`` leaves the image unchanged where the heatmap is 0.
        signed: whether the heatmap is in [-1,1], as ``normalize="signed"`` gives it.
        edges: draw the images' outlines, gray on white, in place of the images. OpenCV finds the outlines on the CPU,
            so images on an accelerator are copied there; without ``edges`` nothing is copied.
        mean, std: the constants with which the images were normalised, for images in [0,1]: a number, or one per
            channel.

    Returns:
        uint8 RGB on the images' device: (B,3,H,W), or (B,K,3,H,W) when the heatmap is (B,K,H,W). For a list of photos,
        a list of (3,H,W) or (K,3,H,W).

    Raises:
        TypeError: an argument is of another type, or a tensor of another dtype, than listed above.
        ValueError: shapes, devices or ranges that do not fit, an unknown colormap.
        ImportError: OpenCV cannot be imported.

    Example:
        >>> import torch
        >>> from gradcam_fast import overlay
        >>> gray = torch.full((1, 3, 1, 2), 0.5)
        >>> heatmap = torch.tensor([[[0.0, 1.0]]])
        >>> overlay(gray, heatmap).squeeze().T.tolist()  # dark blue where cold, dark red where hot
        [[64, 64, 128], [128, 64, 64]]
        >>> overlay(gray, heatmap, alpha=heatmap).squeeze().T.tolist()  # the image where cold
        [[128, 128, 128], [128, 0, 0]]
        >>> overlay(gray, heatmap, box=(1, 0, 2, 1)).squeeze().T.tolist()  # the network saw the right half
        [[128, 128, 128], [127, 191, 129]]
    """
    colormap = default_colormap(colormap, signed)
    heatmap = on_unit_scale(heatmap) if signed else heatmap
    if isinstance(images, (list, tuple)):
        return _overlay_list(images, heatmap, box, colormap=colormap, alpha=alpha, edges=edges, mean=mean, std=std)
    if are_photos(images):
        images = torch.stack([photo_tensor(photo) for photo in read_photos(images)])
        heatmap, alpha = _on_cpu(heatmap), _on_cpu(alpha)
    return _overlay_batch(images, heatmap, box, colormap=colormap, alpha=alpha, edges=edges, mean=mean, std=std)


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, torch.Tensor) else value


def _overlay_list(photos: Sequence[Any], heatmap: Any, box: Any, *, alpha: Any, **options: Any) -> list[Tensor]:
    """The overlay of each photo; tensors stay what they are, anything else is read."""
    check_tensor("heatmap", heatmap, "(B,H,W) or (B,K,H,W)")
    if heatmap.dim() not in (3, 4) or len(heatmap) != len(photos):
        raise ValueError(
            f"heatmap has shape {tuple(heatmap.shape)} for a list of {len(photos)} photos; expected (B,H,W), (B,K,H,W)"
        )
    tensors = [
        photo if isinstance(photo, torch.Tensor) else photo_tensor(read_photos(photo)[0]).to(heatmap.device)
        for photo in photos
    ]
    boxes = boxes_of(box, [(photo.shape[-2], photo.shape[-1]) for photo in tensors])
    blends = []
    for place_in_list, (photo, its_box) in enumerate(zip(tensors, boxes, strict=True)):
        weight = alpha[place_in_list, None] if isinstance(alpha, torch.Tensor) and alpha.dim() > 0 else alpha
        maps = heatmap[place_in_list, None]
        blends.append(_overlay_batch(photo, maps, its_box, alpha=weight, **options)[0])
    return blends


@torch.no_grad()
def _overlay_batch(
    images: Tensor,
    heatmap: Tensor,
    box: Any,
    *,
    colormap: str,
    alpha: float | Tensor,
    edges: bool,
    mean: PerChannel | None,
    std: PerChannel | None,
) -> Tensor:
    check_tensor("images", images, "(B,3,H,W) or (3,H,W)")
    check_tensor("heatmap", heatmap, "(B,H,W), (B,K,H,W) or (H,W)")
    weight = _as_weight(alpha, heatmap)
    images, heatmap = _as_batch(images, heatmap, fits=box is None)
    if box is not None:
        weight = weight if isinstance(weight, float) else _as_maps(weight, heatmap)
        heatmap, weight = _placed(heatmap, weight, boxes_of(box, [_size(images)] * len(images)), _size(images))
    pixels = _as_pixels(images, mean, std)
    colors = colorize(heatmap, colormap)
    if edges:
        pixels = outlines(pixels.round().to(torch.uint8)).float()
    if heatmap.dim() == 4:
        pixels = pixels[:, None]
    return (pixels * (1 - weight) + colors * weight).round_().to(torch.uint8).contiguous()


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _as_maps(weight: float | Tensor, heatmap: Tensor) -> Tensor:
    """A weight as (B[,K],h,w), without the axis of colours."""
    return weight.squeeze(-3).reshape(heatmap.shape) if isinstance(weight, torch.Tensor) else heatmap.new_tensor(weight)


def _placed(
    heatmap: Tensor, weight: float | Tensor, boxes: Sequence[Any], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The heatmap (B[,K],H,W) at the photos' pixels, and the weight of its colour (B[,K],1,H,W), 0 outside of a box."""
    if not heatmap.is_floating_point():
        raise TypeError(f"heatmap has dtype {heatmap.dtype}; give a floating heatmap with values in [0,1]")
    maps, weights = [], []
    for image, box in enumerate(boxes):
        resized, inside = place(heatmap[image].float().nan_to_num(nan=0.0), size, box)
        maps.append(resized)
        of_image = place(weight[image], size, box)[0] if isinstance(weight, torch.Tensor) else weight
        weights.append((inside * of_image).expand(resized.shape).unsqueeze(-3))
    return torch.stack(maps), torch.stack(weights)


def _as_weight(alpha: float | Tensor, heatmap: Tensor) -> float | Tensor:
    """The weight as a number, or as (B[,K],1,H,W) for colours (B[,K],3,H,W)."""
    if not isinstance(alpha, torch.Tensor):
        if not isinstance(alpha, Real):
            raise TypeError(
                f"alpha={alpha!r} is a {type(alpha).__name__}; give a number from 0 to 1, or a tensor of the heatmap's "
                "shape, such as the heatmap itself"
            )
        if not 0 <= alpha <= 1:
            raise ValueError(
                f"alpha={alpha} is outside [0, 1]; give 0 for the image only, up to 1 for the heatmap's colours only"
            )
        return float(alpha)
    if alpha.shape != heatmap.shape or not alpha.is_floating_point():
        raise ValueError(
            f"alpha has shape {tuple(alpha.shape)} and dtype {alpha.dtype}; expected a number, or floating weights of "
            f"the heatmap's shape {tuple(heatmap.shape)}"
        )
    if alpha.device != heatmap.device:
        raise ValueError(f"alpha is on {alpha.device} but heatmap is on {heatmap.device}; move both to one device")
    alpha = alpha.float()
    check_range("alpha", alpha, "give 0 for the image only, up to 1 for the heatmap's colours only")
    return alpha.nan_to_num(nan=0.0).clamp(0, 1).unsqueeze(-3)


def _as_batch(images: Tensor, heatmap: Tensor, *, fits: bool) -> tuple[Tensor, Tensor]:
    images = images[None] if images.dim() == 2 else images
    if images.dim() not in (3, 4) or images.shape[-3] not in (1, 3):
        raise ValueError(
            f"images has shape {tuple(images.shape)}; expected (B,3,H,W) or (B,1,H,W), or one image (3,H,W) or (1,H,W)"
        )
    if heatmap.dim() not in (2, 3, 4):
        raise ValueError(f"heatmap has shape {tuple(heatmap.shape)}; expected (B,H,W) or (B,K,H,W), or one map (H,W)")
    if images.device != heatmap.device:
        raise ValueError(f"images is on {images.device} but heatmap is on {heatmap.device}; move both to one device")
    images = images if images.dim() == 4 else images[None]
    heatmap = heatmap if heatmap.dim() > 2 else heatmap[None]
    if images.shape[0] != heatmap.shape[0]:
        raise ValueError(
            f"heatmap {tuple(heatmap.shape)} does not fit images {tuple(images.shape)}; expected one heatmap per image"
        )
    if fits and images.shape[-2:] != heatmap.shape[-2:]:
        raise ValueError(
            f"heatmap {tuple(heatmap.shape)} has other pixels than images {tuple(images.shape)}, and only its box says "
            f"where in the photo it lies; {WAY_OUT}"
        )
    return images, heatmap


def _as_pixels(images: Tensor, mean: PerChannel | None, std: PerChannel | None) -> Tensor:
    """The images as float32 on [0,255]."""
    if (mean is None) != (std is None):
        raise ValueError("mean and std belong together, but one is None; give both, or neither for images in [0,1]")
    if images.dtype == torch.uint8:
        if mean is not None:
            raise ValueError("uint8 images cannot have been normalised, but mean and std are given; leave them out")
        return images.float()
    if not images.is_floating_point():
        raise TypeError(f"images has dtype {images.dtype}; give uint8, or floating images in [0,1]")
    images = images.float()
    if mean is not None and std is not None:
        images = images * _per_channel("std", std, images) + _per_channel("mean", mean, images)
    check_range("images", images, "give mean and std if they are normalised, or divide 0..255 levels by 255")
    return images.nan_to_num(nan=0.0).clamp(0, 1) * 255


def _per_channel(name: str, values: PerChannel, images: Tensor) -> Tensor:
    """A mean or std as (1,1,1) or (C,1,1), on the images' device."""
    if isinstance(values, torch.Tensor):
        channels = values.to(images).flatten()
    else:
        # Filled on the device, because the host would wait for the copy of a tensor made on the host.
        numbers = tuple(values) if isinstance(values, Iterable) else (values,)
        if not all(isinstance(number, (Real, torch.Tensor)) for number in numbers):
            raise TypeError(f"{name}={values!r} is not a number; give a number, or one per channel")
        if name == "std" and any(isinstance(number, Real) and not float(number) > 0 for number in numbers):
            raise ValueError(f"std={values!r} is not positive; give the numbers by which the images were divided")
        channels = images.new_empty(len(numbers))
        for channel, value in zip(channels, numbers, strict=True):
            channel.fill_(value)
    if len(channels) not in (1, images.shape[1]):
        raise ValueError(
            f"{name} has {len(channels)} values for {images.shape[1]} channels; give one, or one per channel"
        )
    return channels[:, None, None]
