"""The report's plots: costs beside the prediction, how they grow, and the operator against the speed of memory.

Knows nothing of tables or of how things are measured.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, which colour-blind readers tell apart. One contender, one colour.
COLORS = {
    "explainer": "#D55E00",
    "torchcam": "#56B4E9",
    "captum": "#009E73",
    "pytorch-grad-cam": "#0072B2",
    "recipe": "#999999",
}
LABELS = {"explainer": "gradcam_fast", "recipe": "published recipe"}

GROWTH = {
    "batch size, ResNet-18 at 224x224": "images in the batch",
    "side of the image, ResNet-18, B = 1": "side of the image, pixels",
    "number of targets, ResNet-50, B = 1": "targets",
    "layer, ResNet-50, B = 1": "layer, from the last to the first",
}


def draw(name, tables, folder):
    """The markdown that shows the plot of the table ``name``, which is drawn now; nothing for a table without one."""
    if name in GROWTH and name == next(iter(each for each in GROWTH if each in tables)):
        return [_save(_growth(tables), folder, "growth", "How the cost of an explanation grows")]
    if name in PLOTS:
        plot, file, caption = PLOTS[name]
        return [_save(plot(tables[name]), folder, file, caption)]
    return []


def _save(figure, folder, file, caption):
    (folder / "plots").mkdir(exist_ok=True)
    # Without the version of matplotlib in it the same numbers give the same file.
    figure.savefig(folder / "plots" / f"{file}.png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return f"![{caption}](plots/{file}.png)\n"


def _beside_others(records):
    names = [name for name in COLORS if any(name in each["least seconds"] for each in records)]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(records) + 1.6), layout="constrained")
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        rows = [
            (row + place * height, each["least seconds"][name] / each["least seconds"]["inference"])
            for row, each in enumerate(records)
            if name in each["least seconds"]
        ]
        axes.barh(*zip(*rows, strict=True), height=height, color=COLORS[name], label=LABELS.get(name, name))
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(records))], [each["row"] for each in records])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.margins(y=0.01)
    axes.set_xlabel("time, in predictions (the line: the prediction alone)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(names), frameon=False, fontsize=9)
    _plain(axes)
    return figure


def _growth(tables):
    """In predictions of the same images, which take turns with the explanations: times alone would show the clock."""
    present = [name for name in GROWTH if name in tables]
    figure, grid = plt.subplots(2, 2, figsize=(10, 6.4), layout="constrained")
    for axes, name in zip(grid.flat, present, strict=False):
        rows = [each["row"] for each in tables[name]]
        least = [each["least seconds"] for each in tables[name]]
        costs = [each["explainer"] / each["inference"] for each in least]
        axes.axhline(1, color="black", linewidth=1)
        axes.plot(range(len(rows)), costs, "o-", color=COLORS["explainer"], markersize=4)
        axes.set_xticks(range(len(rows)), rows, rotation=0 if rows[0].isdigit() else 30)
        axes.set_ylim(0, max(1.5, *costs) * 1.05)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(GROWTH[name])
        axes.set_ylabel("explanation, in predictions")
        _plain(axes)
    for axes in list(grid.flat)[len(present) :]:
        axes.axis("off")
    return figure


def _operator(records):
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    records = sorted(records, key=lambda each: each["bytes"])
    megabytes = [each["bytes"] / 1e6 for each in records]
    kinds = {"compiled": "#0072B2", "eager": "#56B4E9", "fused": COLORS["explainer"]}
    for kind, color in kinds.items():
        times = [each["least seconds"][kind] * 1e3 for each in records]
        axes.plot(megabytes, times, "o", color=color, label={"compiled": "torch.compile"}.get(kind, kind))
    limit = [each["least seconds"]["limit"] * 1e3 for each in records]
    axes.plot(megabytes, limit, "-", color="black", label="limit: read and write once")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("activations, gradients and map, MB")
    axes.set_ylabel("least time, ms")
    axes.legend(frameon=False)
    _plain(axes)
    return figure


def _plain(axes):
    axes.spines[["top", "right"]].set_visible(False)


PLOTS = {
    "an explanation beside other libraries": (
        _beside_others,
        "libraries",
        "Times of several libraries, in predictions",
    ),
    "the operator": (_operator, "operator", "Time of the operator against the bytes it must touch"),
}
