"""The steps that make a network's input of a photo: resizing, and cutting or padding; and what happens to its box.

The box says which part of the photo a canvas shows: (left, top, right, bottom) in pixels of the photo. Resizing leaves
it as it is; a window moves its edges, beyond the photo where it pads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Box", "Gray", "Margins", "Resize", "ResizePart", "Step", "Window", "cover", "exactly", "in_bounded_memory",
    "longest", "shortest", "within",
]  # fmt: skip

Box: TypeAlias = tuple[float, float, float, float]
"""(left, top, right, bottom)."""

Size: TypeAlias = tuple[int, int]
"""(height, width)."""

INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
# Those that torch has, and those that it can antialias. Pillow's nearest is torch's nearest-exact.
_OF_TORCH, _ANTIALIASED = ("nearest", "nearest-exact", "bilinear", "bicubic"), ("bilinear", "bicubic")

# A photo is not resized as a whole if that would make it larger than this, as a strip would be; 3 bytes a pixel.
MAX_RESIZED_PIXELS = 1 << 25

Fill: TypeAlias = int | tuple[int, ...] | None
"""The colour of padding, 0 to 255; None is 0 in the input, after it was normalised."""


@dataclass(frozen=True)
class Resize:
    """Resize the whole canvas.

    Attributes:
        sides: from (height, width) to the new ones.
        interpolation: of `INTERPOLATIONS`.
        on_tensors: by torch, as transforms of tensors do, and not by Pillow; the two differ in rounding.
        antialias: False only on tensors.
    """

    sides: Callable[[int, int], Size]
    interpolation: str = "bilinear"
    on_tensors: bool = False
    antialias: bool = True

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            names = ", ".join(INTERPOLATIONS)
            raise ValueError(f"interpolation={self.interpolation!r} is unknown; use one of {names}")

    def apply(self, image: Image) -> Image:
        """The resized image."""
        height, width = self.sides(image.height, image.width)
        if (width, height) == image.size:
            return image
        if self.on_tensors and self.interpolation in _OF_TORCH:
            return self._by_torch(image, (height, width))
        return image.resize((width, height), self.kernel)

    @property
    def kernel(self) -> Any:
        """Pillow's kernel."""
        from PIL import Image

        return Image.Resampling[self.interpolation.partition("-")[0].upper()]

    def _by_torch(self, image: Image, size: Size) -> Image:
        import numpy
        from PIL import Image

        pixels = torch.from_numpy(numpy.array(image))
        pixels = pixels[None, None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)[None]
        antialias = self.antialias and self.interpolation in _ANTIALIASED
        pixels = pixels if antialias else pixels.float()
        resized = torch.nn.functional.interpolate(pixels, size, mode=self.interpolation, antialias=antialias)
        resized = resized.round().clamp(0, 255).to(torch.uint8)[0]
        return Image.fromarray(resized.permute(1, 2, 0).numpy() if len(resized) == 3 else resized[0].numpy())

    def canvas(self, size: Size, box: Box) -> tuple[Size, Box]:
        """The new (height, width), and the box."""
        return self.sides(*size), box


@dataclass(frozen=True)
class Window:
    """Cut or pad the canvas to a size, in its middle or at its upper left corner.

    Attributes:
        size: (height, width).
        place: ``centre`` or ``corner``.
        fill: of the padding. None only in the last step.
        rounding: of half pixels when the middle is cut: ``even`` (torchvision) or ``down`` (transformers).
    """

    size: Size
    place: Literal["centre", "corner"] = "centre"
    fill: Fill = 0
    rounding: Literal["even", "down"] = "even"

    def edges(self, size: Size) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the window, in pixels of a canvas of (height, width)."""
        top, left = (self._start(*sides) for sides in zip(size, self.size, strict=True))
        return left, top, left + self.size[1], top + self.size[0]

    def _start(self, side: int, window: int) -> int:
        if self.place == "corner":
            return 0
        if window > side:
            return -((window - side) // 2)
        return (side - window) // 2 if self.rounding == "down" else round((side - window) / 2)

    def apply(self, image: Image) -> Image:
        """The part of the image in the window."""
        return _cut(image, self.edges((image.height, image.width)), self.fill)

    def canvas(self, size: Size, box: Box) -> tuple[Size, Box]:
        """The window's (height, width), and its box."""
        return self.size, _moved(box, size, self.edges(size))


@dataclass(frozen=True)
class Margins:
    """Pad the canvas by fixed numbers of pixels.

    Attributes:
        left, top, right, bottom: in pixels; negative ones cut.
        fill: of the padding.
    """

    left: int
    top: int
    right: int
    bottom: int
    fill: Fill = 0

    def edges(self, size: Size) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the new canvas, in pixels of one of (height, width)."""
        return -self.left, -self.top, size[1] + self.right, size[0] + self.bottom

    def apply(self, image: Image) -> Image:
        """The padded image."""
        return _cut(image, self.edges((image.height, image.width)), self.fill)

    def canvas(self, size: Size, box: Box) -> tuple[Size, Box]:
        """The padded (height, width), and its box."""
        left, top, right, bottom = edges = self.edges(size)
        return (bottom - top, right - left), _moved(box, size, edges)


@dataclass(frozen=True)
class Gray:
    """Turn the colours into one channel of gray, or into three equal ones."""

    channels: int = 1

    def apply(self, image: Image) -> Image:
        """The gray image."""
        gray = image.convert("L")
        return gray if self.channels == 1 else gray.convert("RGB")

    def canvas(self, size: Size, box: Box) -> tuple[Size, Box]:
        """The same size and box."""
        return size, box


Step: TypeAlias = Resize | Window | Margins | Gray


@dataclass(frozen=True)
class ResizePart:
    """Compute a part of the resized canvas only, by Pillow; it rounds a little differently from resizing the whole.

    Attributes:
        resize: of the whole canvas.
        part: (left, top, right, bottom), in pixels of the resized canvas.
    """

    resize: Resize
    part: tuple[int, int, int, int]

    def apply(self, image: Image) -> Image:
        """This part of the resized image."""
        height, width = self.resize.sides(image.height, image.width)
        left, top, right, bottom = self.part
        x, y = image.width / width, image.height / height
        box = left * x, top * y, min(right * x, image.width), min(bottom * y, image.height)
        return image.resize((right - left, bottom - top), self.resize.kernel, box)


def in_bounded_memory(steps: Iterable[Step], size: Size) -> list[Step | ResizePart]:
    """Steps that do the same to a photo of (height, width), without a canvas far larger than what a window shows."""
    bounded: list[Step | ResizePart] = []
    most = max(MAX_RESIZED_PIXELS, size[0] * size[1])
    for step in steps:
        resize = bounded[-1] if bounded else None
        if isinstance(step, Window) and isinstance(resize, Resize) and size[0] * size[1] > most:
            left, top, right, bottom = step.edges(size)
            part = max(left, 0), max(top, 0), min(right, size[1]), min(bottom, size[0])
            margins = Margins(part[0] - left, part[1] - top, right - part[2], bottom - part[3], step.fill)
            bounded[-1:] = [ResizePart(resize, part), margins]
        else:
            bounded.append(step)
        size, _ = step.canvas(size, (0.0, 0.0, 1.0, 1.0))
    return bounded


def _cut(image: Image, edges: tuple[int, int, int, int], fill: Fill) -> Image:
    from PIL import Image

    left, top, right, bottom = edges
    if not fill or (left >= 0 and top >= 0 and right <= image.width and bottom <= image.height):
        return image.crop(edges)  # pads with 0
    colour: Any = fill
    if isinstance(fill, tuple) and (len(fill) == 1 or image.mode == "L"):
        colour = fill[0]
    elif isinstance(fill, int) and image.mode == "RGB":
        colour = (fill,) * 3
    canvas = Image.new(image.mode, (right - left, bottom - top), colour)
    canvas.paste(image, (-left, -top))
    return canvas


def _moved(box: Box, size: Size, edges: tuple[int, int, int, int]) -> Box:
    """The box of the window with these edges, in a canvas of (height, width) that shows ``box``."""
    x, y = (box[2] - box[0]) / size[1], (box[3] - box[1]) / size[0]
    return box[0] + edges[0] * x, box[1] + edges[1] * y, box[0] + edges[2] * x, box[1] + edges[3] * y


# Rules for the sides after resizing. Dataclasses, so that two of the same numbers are equal.


@dataclass(frozen=True)
class exactly:
    """These sides, whatever the proportions."""

    height: int
    width: int

    def __call__(self, height: int, width: int) -> Size:
        """(height, width) after resizing."""
        return self.height, self.width


@dataclass(frozen=True)
class cover:
    """The smallest sides in proportion that cover (height, width)."""

    height: int
    width: int
    rounding: Literal["down", "nearest"] = "down"

    def __call__(self, height: int, width: int) -> Size:
        """(height, width) after resizing."""
        if self.rounding == "nearest":
            ratio = min(height / self.height, width / self.width)
            return round(height / ratio), round(width / ratio)
        if self.height * width >= self.width * height:  # wider than the window: its rows decide
            return self.height, max(self.width, self.height * width // height)
        return max(self.height, self.width * height // width), self.width


@dataclass(frozen=True)
class within:
    """The largest sides in proportion that fit into (height, width)."""

    height: int
    width: int
    rounding: Literal["down", "nearest"] = "nearest"
    enlarge: bool = True

    def __call__(self, height: int, width: int) -> Size:
        """(height, width) after resizing."""
        if self.rounding == "nearest":
            ratio = max(height / self.height, width / self.width)
            if ratio <= 1 and not self.enlarge:
                return height, width
            return max(1, round(height / ratio)), max(1, round(width / ratio))
        scale = min(self.height / height, self.width / width)
        return max(1, int(height * scale)), max(1, int(width * scale))


@dataclass(frozen=True)
class shortest:
    """The shorter side has this length, and the longer one at most ``limit``.

    ``rounding`` is how the other side is computed where the limit holds: ``once`` (torchvision) or ``twice`` (DETR).
    """

    side: int
    limit: int | None = None
    rounding: Literal["once", "twice"] = "once"

    def __call__(self, height: int, width: int) -> Size:
        """(height, width) after resizing."""
        short, long = min(height, width), max(height, width)
        if self.rounding == "twice" and self.limit is not None and long / short * self.side > self.limit:
            exact = self.limit * short / long
            new_short, new_long = round(exact), int(exact * long / short)
        else:
            new_short, new_long = self.side, int(self.side * long / short)
            if self.limit is not None and new_long > self.limit:
                new_short, new_long = int(self.limit * new_short / new_long), self.limit
        return (new_long, new_short) if width <= height else (new_short, new_long)


@dataclass(frozen=True)
class longest:
    """The longer side has this length."""

    side: int

    def __call__(self, height: int, width: int) -> Size:
        """(height, width) after resizing."""
        short, long = min(height, width), max(height, width)
        new_short = max(1, int(self.side * short / long))
        return (self.side, new_short) if width <= height else (new_short, self.side)
