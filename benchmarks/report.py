"""Writes REPORT.md, with its plots, from the JSON of `make bench` and of gpu.py.

    python benchmarks/report.py

Rows of other files in results/, each of a part of the benchmarks measured alone (methods.json, one file for each
network of test_compiled.py), take the place of the same rows in cpu.json. The report contains only what was measured:
no table without its records, no GPU without JSON made on it.
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

Written by `make bench`; every number is from that run, or from one of a part alone, as named below. All contenders run
once in each round, because clock speeds drift. Ratios are of least times; in brackets, of medians.
"""

BESIDE_PREDICTION = """The explanation is the whole of `explainer(images)`: prediction, gradients at the layer,
heatmaps at 224x224. The prediction is a plain forward under `inference_mode`. Ten / one: ten classes per image,
compared to one.
"""

BESIDE_OTHERS = """Each library is used as its documentation shows: it predicts, and makes a heatmap of the predicted
class, in [0,1] and at the images' size. The first columns are times divided by the time of the prediction alone, the
last ones times divided by ours. The recipe is the fastest of the four published ones; it goes image by image. A star:
the maps differ from ours by more than 1e-4. A dash: the library cannot explain this network, or was not installed.
"""

MEMORY = """The peak resident memory of a separate process during three calls, minus what it held before them, with
model and images, in MB. Code pages that the first call loads count, too. *First call* includes the trial runs on one
image that find the layer; elsewhere the layer is named. Bound: prediction, activations, gradients and maps together,
plus 5 %.
"""

METHODS = """One image of 224x224. Times divided by a tenth of the time of ten predictions. *64 channels*: Score-CAM of
the channels that vary most; elsewhere it runs all. A dash: the library does not have the method, or was not installed.
The contenders of Score-CAM run once, those of Ablation-CAM twice.
"""

OPERATOR = """A map cannot cost less than reading activations and gradients once and writing the map once: *limit* is a
vectorised loop that does only that, on as many threads.
"""

COMPILED = """`compiled(images)` of `Explainer.compile`, beside predictions compiled by inductor with the same options
(frozen weights, one batch size): by `torch.compile` as users do, and *traced*, one graph without the guards of
`torch.compile`. *Prediction* and *explanation* alone are eager. Ten targets are explained in one call.
"""

OTHERS = ("recipe", "torchcam", "captum", "pytorch-grad-cam")


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
            record["row"],
            milliseconds(record["least seconds"]["inference"]),
            ratio(record, "explainer/inference", 3),
            ratio(record, "ten/explainer", 3),
        )
        for record in records
    ]
    return BESIDE_PREDICTION, table(("network", "prediction", "explanation / prediction", "ten / one"), rows)


def beside_others(records):
    rows = []
    for record in records:
        least = record["least seconds"]
        cells = [record["row"], f"{least['explainer'] / least['inference']:.2f}"]
        for name in OTHERS:
            star = "*" if name in record["another map"] else ""
            cells.append(f"{least[name] / least['inference']:.2f}{star}" if name in least else "-")
        ratios = record["ratio of least"]
        cells += [f"{ratios[f'{name}/explainer']:.2f}" if name in least else "-" for name in OTHERS]
        rows.append(cells)
    return BESIDE_OTHERS, table(("network", "gradcam_fast", *OTHERS, *(f"{name} / ours" for name in OTHERS)), rows)


def memory(records):
    def megabytes(size):
        return "-" if size is None else f"{size / 1e6:.0f}"

    rows = []
    for record in records:
        peak = record["peak bytes"]
        bound = 1.05 * (peak["inference"] + record["bytes of activations, gradients and maps"])
        ours = peak["explainer, layer named"], peak["explainer"]
        cells = [peak["inference"], *ours, bound, *(peak.get(name) for name in OTHERS)]
        rows.append((record["row"], *map(megabytes, cells)))
    return MEMORY, table(("network", "prediction", "gradcam_fast", "first call", "bound", *OTHERS), rows)


def all_ratios(records, text=""):
    """A table of all ratios, with their geometric means; a dash where one was not measured."""
    pairs = list(dict.fromkeys(pair for record in records for pair in record["ratio of least"]))
    rows = [
        (record["row"], *(ratio(record, pair) if pair in record["ratio of least"] else "-" for pair in pairs))
        for record in records
    ]
    if len(records) > 1:
        kinds = ("ratio of least", "ratio of medians")
        means = {
            pair: [
                statistics.geometric_mean(record[kind][pair] for record in records if pair in record[kind])
                for kind in kinds
            ]
            for pair in pairs
        }
        rows.append(("geometric mean", *("{:.2f} ({:.2f})".format(*means[pair]) for pair in pairs)))
    return text, table(("", *(pair.replace("/", " / ") for pair in pairs)), rows)


def compiled(records):
    return all_ratios(records, COMPILED)


def growth(records):
    rows = [
        (
            record["row"],
            *(milliseconds(record["least seconds"][name]) for name in ("explainer", "inference")),
            ratio(record, "explainer/inference", 3),
        )
        for record in records
    ]
    return "", table(("", "explanation", "prediction", "explanation / prediction"), rows)


def methods(records):
    names = ("explainer", "64 channels", "pytorch-grad-cam", "torchcam")
    rows = []
    for record in records:
        least = record["least seconds"]
        predictions = {name: least[name] / (least["ten predictions"] / 10) for name in names if name in least}
        rows.append((record["row"], *(f"{predictions[name]:.3g}" if name in predictions else "-" for name in names)))
    return METHODS, table(("network, layer, method", "gradcam_fast", "64 channels", *names[2:]), rows)


def correlations(records):
    rows = [(record["row"], f"{record['correlation']:.3f}") for record in records]
    return "", table(("photo of the demo", "correlation with the map of all channels"), rows)


# By name of the table in the records: its section. Tables that are not listed show all their ratios.
SECTIONS = {
    "an explanation beside the prediction": beside_prediction,
    "a compiled explanation beside the compiled prediction": compiled,
    "one graph for all batches": all_ratios,
    "a package beside the compiled explanation": all_ratios,
    "an explanation beside other libraries": beside_others,
    "peak memory": memory,
    **dict.fromkeys(report_plots.GROWTH, growth),
    "methods in predictions": methods,
    "Score-CAM of 64 channels": correlations,
    "the operator": lambda records: all_ratios(records, OPERATOR),
}


def environment(machine, commit, date):
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    cpu = machine["cpu"].get("brand_raw", machine["processor"])
    dirty = ", with changes not committed" if commit["dirty"] else ""
    return (
        f"Machine: {cpu}, {machine['threads']} threads, {machine['system']} {machine['machine']}, Python "
        f"{machine['python_version']}. Versions: {versions}. Kernel: {machine['kernel']}. Commit "
        f"{commit['id'][:7]}{dirty}. {date[:10]}.\n"
    )


def gpu_sections(results):
    """The results of gpu.py on one GPU: goals, then its tables. Results of a trial are refused."""
    machine, versions = results["machine"], results["versions"]
    dirty = ", with changes not committed" if results["dirty"] else ""
    words = {True: "met", False: "missed", None: "not all measured"}
    goals = [(goal.name, goal.required, goal.measured, words[goal.met]) for goal in gpu_report.goals(results)]
    parts = [
        f"## {machine['gpu']}\n",
        f"torch {versions['torch']}, CUDA {versions['cuda']}, {results['commit'][:7]}{dirty}, {results['date']}\n",
        table(("goal", "required", "measured", ""), goals),
    ]
    for title, header, rows in gpu_report.tables(results):
        parts += [f"### {title}\n", table(header, rows)]
    return parts


NO_GPU = "## GPU\n", "Nothing has been measured on a GPU yet; the results of `make gpu` will be shown here.\n"


def write(stored, folder, gpus=(), parts_alone=None):
    """Write REPORT.md and its plots into ``folder``, from the JSON of pytest-benchmark and any number of gpu.py's.

    ``parts_alone`` is JSON of pytest-benchmark, too, of runs of a part of the benchmarks, by name.
    """
    rows, parts_alone = {}, parts_alone or {}
    for run in (stored, *parts_alone.values()):
        for bench in run["benchmarks"]:
            record = bench["extra_info"]
            rows[record["table"], record["row"]] = record
    tables = {}
    for (name, _), record in rows.items():
        tables.setdefault(name, []).append(record)
    names_by_environment = {}
    for name, run in parts_alone.items():
        described = environment(run["machine_info"], run["commit_info"], run["datetime"])
        names_by_environment.setdefault(described, []).append(name)
    parts = [HEAD, environment(stored["machine_info"], stored["commit_info"], stored["datetime"])]
    parts += [f"Measured alone: {', '.join(names)}. {described}" for described, names in names_by_environment.items()]
    order = list(SECTIONS)
    for name in sorted(tables, key=lambda name: order.index(name) if name in order else len(order)):
        text, body = SECTIONS.get(name, all_ratios)(tables[name])
        parts += [f"## {name[0].upper()}{name[1:]}\n", text, *report_plots.draw(name, tables, folder), body]
    parts += [part for results in gpus for part in gpu_sections(results)] or NO_GPU
    (folder / "REPORT.md").write_text("\n".join(part for part in parts if part), encoding="utf-8")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    gpus = [read(path) for path in sorted(RESULTS.glob("gpu*.json"))]
    alone = [path for path in sorted(RESULTS.glob("*.json")) if path != CPU and not path.stem.startswith("gpu")]
    write(read(CPU), HERE, gpus, {path.stem: read(path) for path in alone})
