"""Writes docs/zoo.md: what is found in each network of the zoo; `PYTHONPATH=tests python docs/make_zoo.py`."""

import warnings
from pathlib import Path

from support import zoo, zoo_tasks

from gradcam_fast.exceptions import ExplanationError

HEAD = """# Zoo

Known networks, the layer found in each, and how far its heatmap is from the textbook: Grad-CAM by an ordinary backward
through the whole network, in float64 behind the layer. Weights are random. Quantised networks have no gradient and are
left out; "written out" are heads of other libraries in `tests/support`. Written by `docs/make_zoo.py`;
`tests/layer_search/test_search_known_networks.py` checks the same table.

| library | network | image | layer found | layout | grid | difference | not flat | note |
|---|---|---|---|---|---|---|---|---|
"""


def row(network):
    model, images, inputs = zoo.prepare(network)
    image = "x".join(map(str, network.shape))
    try:
        explanation = zoo.explained(network, model, images, inputs)
    except (ExplanationError, ValueError) as refusal:
        return f"| {network.library} | {network.name} | {image} | refused | | | | | {refusal} |"
    layers = explanation.layer if isinstance(explanation.layer, tuple) else (explanation.layer,)
    if explanation.layer != network.layer:
        raise SystemExit(f"{network.title}: found {explanation.layer}, expected {network.layer}")
    expected = zoo.full_graph_heatmap(network, model, images, inputs, layers)
    difference = (explanation.heatmap.double() - expected).abs().max().item()
    return " | ".join(
        [
            f"| {network.library}",
            network.name,
            image,
            "`" + "`, `".join(layers) + "`",
            zoo.in_words(network.layout),
            "x".join(map(str, zoo.sides(network))),
            f"{difference:.0e}",
            "yes" if explanation.valid.all() else "no",
            f"{network.note} |",
        ]
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    rows = [row(network) + "\n" for network in (*zoo.NETWORKS, *zoo_tasks.NETWORKS)]
    (Path(__file__).parent / "zoo.md").write_text(HEAD + "".join(rows))
