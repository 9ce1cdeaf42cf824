"""The gallery: pictures in rows, small ones pixel by pixel, large ones smooth, each under its own caption."""

import pytest
import torch
from support.drawn import assert_readable, pictures_in, texts_in

from gradcam_fast.visual.figures import gallery


def noise(*size):
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8)


def test_pictures_are_drawn_in_order_under_their_captions_and_the_title(tmp_path):
    pictures = [noise(256, 384) for _ in range(5)]
    figure = gallery(pictures, ["a", "b", "c", "d", "e"], title="five")
    assert texts_in(figure) == ["five", "a", "b", "c", "d", "e"]
    drawn = pictures_in(figure, tmp_path / "a.png")
    assert len(drawn) == 5 and all(map(torch.equal, drawn, pictures))
    places = [axes.get_window_extent() for axes in figure.axes]
    for caption, place in zip(figure.texts[1:], places, strict=True):
        box = caption.get_window_extent()
        assert abs((box.x0 + box.x1 - place.x0 - place.x1) / 2) < 1 and 0 < box.y0 - place.y1 < 12
    assert len({round(place.y0) for place in places}) == 2


def test_a_small_map_is_enlarged_to_the_photo_beside_it_every_pixel_a_square(tmp_path):
    photo, small = noise(384, 384), noise(8, 8)
    drawn = pictures_in(gallery([photo, small], ["photo", "map"]), tmp_path / "a.png")
    assert torch.equal(drawn[0], photo)
    assert torch.equal(drawn[1], small.repeat_interleave(48, 1).repeat_interleave(48, 2))


def test_a_large_photo_is_made_smaller_without_aliasing(tmp_path):
    stripes = torch.zeros(3, 1536, 1152, dtype=torch.uint8)
    stripes[:, ::2] = 200
    (drawn,) = pictures_in(gallery([stripes], ["stripes"]), tmp_path / "a.png")
    assert drawn.shape == (3, 512, 384)
    assert (drawn[:, 4:-4].float() - 100).abs().max() <= 12


@pytest.mark.parametrize("columns", [1, 2, 7, 50])
def test_captions_can_be_read_whatever_the_pictures_shapes(columns):
    pictures = [noise(30, 20), noise(5, 200), noise(200, 5), noise(1, 1), noise(600, 400), noise(7, 7), noise(64, 64)]
    captions = [f"{'a rather long caption ' * i}\nno. {i}" for i in range(7)]
    assert_readable(gallery(pictures, captions, columns=columns, title="pictures"))


@pytest.mark.parametrize(
    ("pictures", "captions", "columns", "message"),
    [
        ([noise(2, 2)], [], 3, r"len\(pictures\)=1, len\(captions\)=0; give one caption per picture"),
        ([], [], 3, r"len\(pictures\)=0"),
        ([noise(2, 2)], ["a"], 0, "columns=0 leaves no room; give at least 1"),
        ([noise(2, 2) * 1.0], ["a"], 3, r"a photo ranges from .*; give floating values in \[0,1\]"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(pictures, captions, columns, message):
    with pytest.raises(ValueError, match=message):
        gallery(pictures, captions, columns=columns)
