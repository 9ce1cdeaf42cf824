"""What a figure shows: its pictures as they are in the written file, and whether all its texts can be read.

Knows nothing of what a figure should show.
"""

from itertools import combinations

import numpy
import torch
from PIL import Image

from gradcam_fast.visual.figures import save


def pictures_in(figure, path):
    """The figure's pictures as (3,h,w) tensors, cut out of the file it is written to; each must lie on whole pixels."""
    save(figure, path)
    page = torch.from_numpy(numpy.array(Image.open(path))).permute(2, 0, 1)
    found = []
    for axes in filter(_is_picture, figure.axes):
        left, bottom, right, top = axes.get_window_extent().extents
        height = page.shape[1]
        assert max(abs(edge - round(edge)) for edge in (left, bottom, right, top)) < 1e-6
        found.append(page[:, height - round(top) : height - round(bottom), round(left) : round(right)])
    return found


def texts_in(figure):
    """The texts as they were before they were broken into lines, where every line end stands for a space."""
    return [text.get_text().replace("\n", " ") for text in figure.texts]


def assert_readable(figure):
    """Every text and picture lies inside the page, and none touches another."""
    texts = [text.get_window_extent() for text in figure.texts]
    pictures = [axes.get_window_extent() for axes in figure.axes if _is_picture(axes)]
    charts = [axes.get_tightbbox() for axes in figure.axes if not _is_picture(axes)]
    page = figure.bbox
    for box in (*texts, *pictures, *charts):
        assert box.width > 0 and box.height > 0
        assert box.x0 >= -1e-6 and box.y0 >= -1e-6 and box.x1 <= page.x1 + 1e-6 and box.y1 <= page.y1 + 1e-6
    for one, other in combinations((*texts, *pictures, *charts), 2):
        assert not (one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1)


def _is_picture(axes):
    return bool(axes.images)
