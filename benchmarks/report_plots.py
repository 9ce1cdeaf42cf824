"""The plots of the report: libraries beside the prediction, how the cost grows, the operator beside the read limit."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# The Okabe-Ito palette, which colour-blind readers can tell apart. Each contender has the same colour in all plots.
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
    """Draw the plot of the table ``name``, if it has one, and return the markdown lines that show it."""
    if name in GROWTH and name == next(table for table in GROWTH if table in tables):
        return [_save(_growth(tables), folder, "growth", "How the cost of an explanation grows")]
    if name in PLOTS:
        plot, file, caption = PLOTS[name]
        return [_save(plot(tables[name]), folder, file, caption)]
    return []


def _save(figure, folder, file, caption):
    (folder / "plots").mkdir(exist_ok=True)
    # Without matplotlib's version in the metadata, so that the same numbers give the same file.
    figure.savefig(folder / "plots" / f"{file}.png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return f"![{caption}](plots/{file}.png)\n"


def _beside_others(records):
    names = [name for name in COLORS if any(name in record["least seconds"] for record in records)]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(records) + 1.6), layout="constrained")
    height = 0.8 / len(names)
    for position, name in enumerate(names):
        rows = [
            (row + position * height, record["least seconds"][name] / record["least seconds"]["inference"])
            for row, record in enumerate(records)
            if name in record["least seconds"]
        ]
        axes.barh(*zip(*rows, strict=True), height=height, color=COLORS[name], label=LABELS.get(name, name))
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(records))], [record["row"] for record in records])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.margins(y=0.01)
    axes.set_xlabel("time, in predictions (the line: the prediction alone)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(names), frameon=False, fontsize=9)
    _hide_spines(axes)
    return figure


def _growth(tables):
    """Costs are ratios to the prediction of the same images in the same rounds; times alone would show clock drift."""
    present = [name for name in GROWTH if name in tables]
    figure, grid = plt.subplots(2, 2, figsize=(10, 6.4), layout="constrained")
    for axes, name in zip(grid.flat, present, strict=False):
        rows = [record["row"] for record in tables[name]]
        least_times = [record["least seconds"] for record in tables[name]]
        costs = [times["explainer"] / times["inference"] for times in least_times]
        axes.axhline(1, color="black", linewidth=1)
        axes.plot(range(len(rows)), costs, "o-", color=COLORS["explainer"], markersize=4)
        axes.set_xticks(range(len(rows)), rows, rotation=0 if rows[0].isdigit() else 30)
        axes.set_ylim(0, max(1.5, *costs) * 1.05)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(GROWTH[name])
        axes.set_ylabel("explanation, in predictions")
        _hide_spines(axes)
    for axes in list(grid.flat)[len(present) :]:
        axes.axis("off")
    return figure


def _operator(records):
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    records = sorted(records, key=lambda record: record["bytes"])
    megabytes = [record["bytes"] / 1e6 for record in records]
    colors = {"compiled": "#0072B2", "eager": "#56B4E9", "fused": COLORS["explainer"]}
    for name, color in colors.items():
        times = [record["least seconds"][name] * 1e3 for record in records]
        axes.plot(megabytes, times, "o", color=color, label={"compiled": "torch.compile"}.get(name, name))
    limit = [record["least seconds"]["limit"] * 1e3 for record in records]
    axes.plot(megabytes, limit, "-", color="black", label="limit: read and write once")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("activations, gradients and map, MB")
    axes.set_ylabel("least time, ms")
    axes.legend(frameon=False)
    _hide_spines(axes)
    return figure


def _hide_spines(axes):
    axes.spines[["top", "right"]].set_visible(False)


PLOTS = {
    "an explanation beside other libraries": (
        _beside_others,
        "libraries",
        "Times of several libraries, in predictions",
    ),
    "the operator": (_operator, "operator", "Time of the operator against the bytes it must touch"),
}
