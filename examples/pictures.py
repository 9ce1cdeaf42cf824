"""What the examples share: the command line, reading photos, loading weights, writing figures.

Photos are tensors (1,3,H,W) uint8 RGB.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import cv2
import torch
from matplotlib.text import Text

from gradcam_fast.visual import figures

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def arguments(description, argv=None):
    """Parse the command line of all examples: photos, `--weights FILE` and `--out FOLDER`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path, help="photos to explain (default: an installed one)")
    parser.add_argument("--weights", type=Path, help="a state_dict file (default: random weights)")
    parser.add_argument("--out", type=Path, default=Path("explained"), help="where to write (default: %(default)s)")
    return parser.parse_args(argv)


def sample_photo(name="chelsea.png"):
    """Path of a photo of scikit-image; chelsea is a cat, coffee a cup."""
    package = find_spec("skimage")
    if package is None:
        raise SystemExit(
            "no photo was named, and scikit-image, which has some, is missing; run pip install scikit-image"
        )
    return Path(package.origin).parent / "data" / name


def sample_xray():
    """A drawing of two dark lungs with ribs, one lung with a bright patch: (1,3,256,256)."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 256), torch.linspace(-1, 1, 256), indexing="ij")
    lungs = sum(torch.exp(-8 * (x - side) ** 2 - 2 * y**2) for side in (-0.45, 0.45))
    patch = torch.exp(-40 * (x - 0.4) ** 2 - 40 * (y - 0.3) ** 2)
    gray = 0.8 - 0.6 * lungs + 0.1 * torch.sin(25 * y + 4 * x**2) * lungs + 0.4 * patch
    return (gray.clamp(0, 1) * 255).byte().expand(1, 3, -1, -1)


def read(path, side):
    """Read a photo as (1,3,side,side), resized without regard to its proportions."""
    photo = cv2.imread(str(path))
    if photo is None:
        raise SystemExit(f"{path} cannot be read as a photo; give the path of a PNG or JPEG file")
    photo = cv2.resize(cv2.cvtColor(photo, cv2.COLOR_BGR2RGB), (side, side), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(photo).permute(2, 0, 1).unsqueeze(0)


def imagenet(photo):
    """Normalise a photo for networks trained on ImageNet."""
    return (photo / 255 - MEAN) / STD


def load(model, weights):
    """Put the model in eval mode, with the weights of a state_dict file if one is given."""
    if weights:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    else:
        print("the weights are random, so the heatmaps mean nothing; give trained ones with --weights")
    return model.eval()


def save(figure, path, *, weights="trained"):
    """Write a figure, stamped if there are no trained weights, and print its path."""
    if not weights:
        figure.add_artist(Text(0.995, 0.995, "random weights", color="red", ha="right", va="top", fontsize=9))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figures.save(figure, path)
    except OSError as error:
        raise SystemExit(f"{path} cannot be written ({error}); give a folder you may write to with --out") from None
    print(f"wrote {path}")
