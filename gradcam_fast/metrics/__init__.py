"""How far to trust a heatmap: metrics, on the images' device, in batches.

| metric | asks | better | predictions for each heatmap |
|---|---|---|---|
| :func:`insertion`, :func:`deletion` | how fast the score comes and goes with the hottest pixels | high, low | steps |
| :func:`road` | the same without the outlines of what was removed | high | two for each percentage |
| :func:`confidence_drop`, :func:`confidence_increase`, :func:`win_rate` | is the masked image enough | low, high | 1 |
| :func:`pointing_game`, :func:`mass_accuracy`, :func:`rank_accuracy`, :func:`iou_at` | is it on the object | high | 0 |
| :func:`randomisation` | does it depend on what the model has learnt | low | an explanation for each layer |
| :func:`stability` | does it change with what nobody sees | low | samples + 8 explanations |
| :func:`complexity` | is it concentrated | low entropy, high Gini | 0 |

:func:`compare` makes a table of several explainers; :func:`boxes`, :func:`mask` and :func:`region_masks` cut out what
is hot; :func:`explain_func` plugs an explainer into Quantus.
"""

from .baselines import BASELINE_MAPS, centre_map, edge_map, random_map, saliency_map
from .comparison import METRICS, Comparison, compare
from .confidence import confidence_drop, confidence_increase, win_rate
from .imputation import impute
from .localisation import iou_at, mass_accuracy, pointing_game, rank_accuracy
from .perturbation import Curve, deletion, insertion
from .quantus import explain_func
from .randomisation import Randomisation, randomisation
from .regions import boxes, mask, region_masks
from .road import Road, road
from .stability import Complexity, Stability, complexity, stability

__all__ = [
    "BASELINE_MAPS", "METRICS", "Comparison", "Complexity", "Curve", "Randomisation", "Road", "Stability", "boxes",
    "centre_map", "compare", "complexity", "confidence_drop", "confidence_increase", "deletion", "edge_map",
    "explain_func", "impute", "insertion", "iou_at", "mask", "mass_accuracy", "pointing_game", "random_map",
    "randomisation", "rank_accuracy", "region_masks", "road", "saliency_map", "stability", "win_rate",
]  # fmt: skip
