"""REPORT.md, with its plots, from the JSON of `make bench` and of gpu.py.

    python benchmarks/report.py

Only what was measured is in it: no table without its records, no GPU without JSON made on one. Knows nothing of how
things are measured.
"""

import json
import statistics
from pathlib import Path

import gpu_report
import report_plots

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CPU = RESULTS / "cpu.json"

HEAD = """# What an explanation costs

Written by `make bench`; every number is from that run. Contenders take turns in each round, because clocks drift.
Ratios are of least times, in brackets of medians.
"""

BESIDE_PREDICTION = """The whole of `explainer(images)`: prediction, gradients at the layer, heatmaps at 224x224, beside
a plain forward under `inference_mode`; and ten classes per image beside one.
"""

BESIDE_OTHERS = """Each as its documentation uses it: prediction, and for the class predicted a heatmap in [0,1] at the
images' size. Times the prediction alone; the last columns say how many times as long as `explainer` the others take.
The recipe is the quickest of the four published ones, image by image. A map that differs from ours by more than 1e-4 is
marked with a star. A dash: it does not explain this network, or was not installed.
"""

MEMORY = """The greatest resident set of a process of its own in three calls, less what it held with model and images at
rest, in MB. Pages of code that a first call brings in count, too. *First call*: with the trial runs that find the layer
on one image; otherwise the layer is named. Bound: prediction, activations, gradients and maps together, and 5 %.
"""

OPERATOR = """Reading activations and gradients once and writing the map once is the least that a map can cost: *limit*
is a vectorised loop that does only that, on as many threads.
"""

RIVALS = {"recipe": "recipe", "torchcam": "torchcam", "captum": "captum", "pytorch-grad-cam": "pytorch-grad-cam"}


def table(header, rows):
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def ratio(record, pair, digits=2):
    least, median = record["ratio of least"][pair], record["ratio of medians"][pair]
    return f"{least:.{digits}f} ({median:.{digits}f})"


def milliseconds(seconds):
    return f"{seconds * 1e3:,.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.3g} ms"


def beside_prediction(records):
    rows = [
        (
            each["row"],
            milliseconds(each["least seconds"]["inference"]),
            ratio(each, "explainer/inference", 3),
            ratio(each, "ten/explainer", 3),
        )
        for each in records
    ]
    return BESIDE_PREDICTION, table(("network", "prediction", "explanation / prediction", "ten / one"), rows)


def beside_others(records):
    rows = []
    for each in records:
        least = each["least seconds"]
        cells = [each["row"], f"{least['explainer'] / least['inference']:.2f}"]
        for rival in RIVALS:
            star = "*" if rival in each["another map"] else ""
            cells.append(f"{least[rival] / least['inference']:.2f}{star}" if rival in least else "-")
        cells += [f"{each['ratio of least'][f'{r}/explainer']:.2f}" if r in least else "-" for r in RIVALS]
        rows.append(cells)
    names = list(RIVALS.values())
    return BESIDE_OTHERS, table(("network", "gradcam_fast", *names, *(f"{name} / ours" for name in names)), rows)


def memory(records):
    def megabytes(count):
        return "-" if count is None else f"{count / 1e6:.0f}"

    rows = []
    for each in records:
        peak = each["peak bytes"]
        bound = 1.05 * (peak["inference"] + each["bytes of activations, gradients and maps"])
        ours = peak["explainer, layer named"], peak["explainer"]
        cells = [peak["inference"], *ours, bound, *(peak.get(rival) for rival in RIVALS)]
        rows.append((each["row"], *map(megabytes, cells)))
    return MEMORY, table(("network", "prediction", "gradcam_fast", "first call", "bound", *RIVALS.values()), rows)


def by_ratios(records, text=""):
    """Any table of ratios, with its geometric means."""
    pairs = list(records[0]["ratio of least"])
    rows = [(each["row"], *(ratio(each, pair) for pair in pairs)) for each in records]
    if len(records) > 1:
        kinds = ("ratio of least", "ratio of medians")
        means = {
            pair: [statistics.geometric_mean(each[kind][pair] for each in records) for kind in kinds] for pair in pairs
        }
        rows.append(("geometric mean", *("{:.2f} ({:.2f})".format(*means[pair]) for pair in pairs)))
    return text, table(("", *(pair.replace("/", " / ") for pair in pairs)), rows)


def growth(records):
    kinds = ("explainer", "inference")
    rows = [
        (
            each["row"],
            *(milliseconds(each["least seconds"][kind]) for kind in kinds),
            ratio(each, "explainer/inference", 3),
        )
        for each in records
    ]
    return "", table(("", "explanation", "prediction", "explanation / prediction"), rows)


# What becomes of the records of a table; of others, a table of their ratios.
SECTIONS = {
    "an explanation beside the prediction": beside_prediction,
    "an explanation beside other libraries": beside_others,
    "peak memory": memory,
    **dict.fromkeys(report_plots.GROWTH, growth),
    "the operator": lambda records: by_ratios(records, OPERATOR),
}


def made_on(machine, commit, date):
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    cpu = machine["cpu"].get("brand_raw", machine["processor"])
    dirty = ", with changes not committed" if commit["dirty"] else ""
    return (
        f"Machine: {cpu}, {machine['threads']} threads, {machine['system']} {machine['machine']}, Python "
        f"{machine['python_version']}. Versions: {versions}. Kernel: {machine['kernel']}. Commit "
        f"{commit['id'][:7]}{dirty}. {date[:10]}.\n"
    )


def gpu_sections(results):
    """What gpu.py measured on one GPU: goals, then its tables. What a trial of the program wrote is refused."""
    machine, versions = results["machine"], results["versions"]
    dirty = ", with changes not committed" if results["dirty"] else ""
    reach = [
        (what, asked, seen, {True: "met", False: "missed", None: "not all measured"}[met])
        for what, asked, seen, met in gpu_report.reach(results)
    ]
    parts = [
        f"## {machine['gpu']}\n",
        f"torch {versions['torch']}, CUDA {versions['cuda']}, {results['commit'][:7]}{dirty}, {results['date']}\n",
        table(("goal", "asked", "seen", ""), reach),
    ]
    for title, header, rows in gpu_report.tables(results):
        parts += [f"### {title}\n", table(header, rows)]
    return parts


NO_GPU = "## GPU\n", "Nothing has been measured on a GPU; what `make gpu` stores on one goes here.\n"


def write(stored, folder, gpus=()):
    """REPORT.md and its plots in ``folder``, from pytest-benchmark's JSON and any number of gpu.py's."""
    tables = {}
    for bench in stored["benchmarks"]:
        record = bench["extra_info"]
        tables.setdefault(record["table"], []).append(record)
    parts = [HEAD, made_on(stored["machine_info"], stored["commit_info"], stored["datetime"])]
    order = list(SECTIONS)
    for name in sorted(tables, key=lambda name: order.index(name) if name in order else len(order)):
        text, body = SECTIONS.get(name, by_ratios)(tables[name])
        parts += [f"## {name[0].upper()}{name[1:]}\n", text, *report_plots.draw(name, tables, folder), body]
    parts += [part for results in gpus for part in gpu_sections(results)] or NO_GPU
    (folder / "REPORT.md").write_text("\n".join(part for part in parts if part), encoding="utf-8")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    write(read(CPU), HERE, [read(path) for path in sorted(RESULTS.glob("gpu*.json"))])
