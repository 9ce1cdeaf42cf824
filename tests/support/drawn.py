"""Reads a figure back: its pictures from the written file, its texts, and whether all of them can be read."""

from itertools import combinations

import numpy
import torch
from PIL import Image

from gradcam_fast.visual.figures import save


def pictures_in(figure, path):
    """Write the figure and cut its pictures (3,h,w) out of the file; each must lie on whole pixels."""
    save(figure, path)
    page = torch.from_numpy(numpy.array(Image.open(path))).permute(2, 0, 1)
    pictures = []
    for axes in filter(_is_picture, figure.axes):
        left, bottom, right, top = axes.get_window_extent().extents
        height = page.shape[1]
        assert max(abs(edge - round(edge)) for edge in (left, bottom, right, top)) < 1e-6
        pictures.append(page[:, height - round(top) : height - round(bottom), round(left) : round(right)])
    return pictures


def texts_in(figure):
    """The texts of the figure, with a space in place of every line break."""
    return [text.get_text().replace("\n", " ") for text in figure.texts]


def assert_readable(figure):
    """Every text, picture and chart is inside the page, and none overlaps another."""
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
