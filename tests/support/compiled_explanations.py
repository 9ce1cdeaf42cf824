"""Compiled explanations against eager ones."""

import torch

from support.tolerances import COMPILED_LOGITS, RECIPE_PARITY


def random_images(batch, *sides):
    return torch.randn(batch, 3, *(sides or (16, 16)))


def assert_same(result, expected):
    assert result.layer == expected.layer
    for name in ("target", "valid", "reason_codes"):
        if getattr(expected, name) is None:
            assert getattr(result, name) is None
        else:
            assert torch.equal(getattr(result, name), getattr(expected, name)), name
    torch.testing.assert_close(result.heatmap, expected.heatmap, rtol=0, atol=RECIPE_PARITY)
    for name in ("logits", "score", "raw_min", "raw_max"):
        torch.testing.assert_close(getattr(result, name), getattr(expected, name), rtol=1e-4, atol=COMPILED_LOGITS)
