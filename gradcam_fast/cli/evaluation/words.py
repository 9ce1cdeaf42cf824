"""What the report says of each metric and baseline, in one sentence."""

from __future__ import annotations

__all__ = ["BASELINE_WORDS", "METRIC_WORDS"]

METRIC_WORDS = {
    "insertion": "The pixels are put into a blurred photo, hottest first: how high is the class's score on average?",
    "deletion": "The pixels are taken out of the photo, hottest first: how high is the score on average?",
    "road": "The hottest, and the coldest, pixels are filled in from their neighbours: how much more of the score do "
    "the hottest take away?",
    "confidence_drop": "The photo is dimmed where the heatmap is cold: which share of its score does the class lose?",
    "confidence_increase": "The same: in which share of the photos does the score rise?",
    "gini": "How concentrated is the heatmap: 0 is equal everywhere, near 1 is one place?",
    "pointing_game": "Is the hottest pixel in a box, or at most 15 pixels from one?",
    "mass_accuracy": "Which share of the heat is in the boxes?",
    "rank_accuracy": "Of as many of the hottest pixels as the boxes have, which share is in the boxes?",
    "iou": "How well do the pixels above half of the maximum cover the boxes (intersection over union)?",
}
BASELINE_WORDS = {
    "random": "random heat, drawn for each pixel by itself",
    "centre": "a spot in the middle, where photographers put what matters",
    "edges": "the edges of the photo",
    "saliency": "the gradient of the score at each pixel, which has no layer",
}
