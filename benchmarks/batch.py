"""What Ray adds to the price of a photo, and how throughput grows with the number of actors.

    PYTHONPATH=tests python benchmarks/batch.py cost          # CPU seconds beside the command line's, goal 1 / 0.85
    PYTHONPATH=tests python benchmarks/batch.py growth        # 10^5 rows by a network that only waits

Costs are CPU seconds between the first batch and the last one. For growth, the network of `waiting_network` waits
instead of computing: more actors than cores then stand for more machines, until what is not the network (decoding,
Arrow, Ray) fills the cores. The last number of actors has all rows, the others as many as they take in `--seconds`.
Rates are those of the middle of a run, while all actors work.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy
import psutil
import pyarrow
import ray
import torch
from PIL import Image
from support import red_or_blue

from gradcam_fast.batch import Actors, Explain, explain_photos
from gradcam_fast.cli.console import Report
from gradcam_fast.cli.photo_pipeline import RunSettings
from gradcam_fast.cli.photo_pipeline import explain_photos as explain_on_one_machine
from gradcam_fast.pipeline.network_source import NetworkSource
from gradcam_fast.pipeline.networks import load_network
from gradcam_fast.pipeline.photo_files import PhotoFile

BATCH = 32
SECONDS_PER_PHOTO = 0.004
WAITING = NetworkSource(
    "batch:waiting_network", size=(56, 56), mean=(0, 0, 0), std=(1, 1, 1), crop=None, probabilities="softmax"
)
NOTES = "GRADCAM_FAST_NOTES"
NOTING = NetworkSource(
    "batch:noting_network", size=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3, crop=None, probabilities="softmax"
)


class Waiting(torch.nn.Module):
    """The network that tells red from blue, at the price of waiting; it notes when it ran, as `Noting`."""

    def __init__(self):
        super().__init__()
        self.layers = red_or_blue.model()

    def forward(self, images):
        logits = self.layers(images)
        if images.any():
            time.sleep(SECONDS_PER_PHOTO * len(images))
            note(images)
        return logits


def waiting_network():
    return Waiting().eval()


def make_photos(folder, count):
    """JPEGs of 512x512, crops of photos that scikit-image ships."""
    from skimage import data

    generator = random.Random(0)
    sources = [Image.fromarray(pixels).convert("RGB") for pixels in (data.astronaut(), data.chelsea(), data.coffee())]
    paths = []
    for number, source in zip(range(count), itertools.cycle(sources)):
        side = generator.randrange(200, min(source.size))
        left, top = (generator.randrange(length - side + 1) for length in source.size)
        photo = source.resize((512, 512), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        paths.append(folder / f"{number:04}.jpg")
        photo.save(paths[-1], quality=90)
    return paths


class Noting(torch.nn.Module):
    """EfficientNet-Lite0 that notes when it ran, and on how many photos, in the file named by `NOTES`."""

    def __init__(self):
        super().__init__()
        self.layers = load_network("efficientnet_lite0").model

    def forward(self, images):
        logits = self.layers(images)
        if images.any():  # weights are tried on black images
            note(images)
        return logits


def note(images):
    """Write down that this process has just predicted these images."""
    with open(os.environ[NOTES], "a") as file:
        file.write(f"{time.time()} {len(images)} {os.getpid()}\n")


def noted(file):
    """(time, number of images, process) of each forward, by time."""
    return sorted(tuple(map(float, line.split())) for line in file.read_text().splitlines())


def noting_network():
    return Noting().eval()


def local(paths, out):
    network = NOTING.load()
    report = Report(tell=lambda _: None)
    settings = RunSettings(formats=("parquet",), batch_size=BATCH, workers=1)
    files = [PhotoFile(path) for path in paths]
    assert explain_on_one_machine(network, files, out, network.ask(), settings, report) == 0


def on_ray(paths, out):
    assert explain_photos(paths, out, Explain(NOTING, batch_size=BATCH), Actors(1)).explained == len(paths)


class Meter:
    """CPU seconds of this process and of all that it started, each by time."""

    def __init__(self):
        self.series = {}

    def sample(self):
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            try:
                spent = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            self.series.setdefault(process.pid, []).append((time.time(), spent.user + spent.system))

    def between(self, start, end):
        """What each process spent between two moments, by pid."""
        spent = {}
        for pid, series in self.series.items():
            at_start, at_end = numpy.interp((start, end), *zip(*series, strict=True))
            spent[pid] = float(at_end - at_start)
        return spent


def measured(work):
    """A meter that watched ``work``."""
    meter, done = Meter(), threading.Event()
    meter.sample()

    def watch():
        while not done.wait(0.2):
            meter.sample()

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    meter.sample()
    return meter


def cost(folder, count, rounds):
    """CPU seconds of a photo in the process that explains, and of what runs beside it; both engines take turns."""
    paths = make_photos(folder, count)
    torch.set_num_threads(1)
    a_photo, beside = {"command line": [], "ray": []}, []
    for number, (name, run) in itertools.product(range(rounds), (("command line", local), ("ray", on_ray))):
        notes, out = folder / f"notes {name} {number}", folder / f"{name} {number}"
        os.environ[NOTES] = str(notes)
        if name == "ray":
            ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False)
        meter = measured(lambda run=run, out=out: run(paths, out))
        if name == "ray":
            ray.shutdown()
        forwards = noted(notes)
        (start, *_), (end, _, pid) = forwards[1], forwards[-1]  # the first forward looks for the layer
        spent = meter.between(start, end)
        a_photo[name].append(spent.pop(int(pid)) / sum(photos for _, photos, _ in forwards[2:]))
        if name == "ray":
            beside.append(sum(spent.values()) / (end - start))
        print(f"{name}: {a_photo[name][-1]:.4f} CPU seconds a photo, {end - start:.0f} s", flush=True)
    best = {name: min(values) for name, values in a_photo.items()}
    size = sum(part.stat().st_size for part in (folder / "ray 0" / "maps.parquet").glob("*.parquet"))
    result = {
        "photos per CPU second of the process that explains": {name: round(1 / best[name], 2) for name in best},
        "ray / command line": round(best["command line"] / best["ray"], 3),
        "cores beside it, driver and daemons of Ray": round(min(beside), 3),
        "bytes per row": round(size / count, 1),
        "bytes per photo": round(sum(path.stat().st_size for path in paths) / count),
    }
    print(json.dumps(result))


def growth(folder, rows, counts, seconds):
    """Rows per second and what they cost, by the number of actors."""
    photo = folder / "photo.png"
    red_or_blue.photo(scale=1).save(photo)
    listing = pyarrow.table({"path": [str(photo)] * rows, "name": [f"photo {number}" for number in range(rows)]})
    for count in counts:
        wanted = rows if count == max(counts) else min(rows, round(count * seconds / SECONDS_PER_PHOTO))
        share = listing.slice(0, wanted)
        out = folder / f"{count} actors"
        os.environ[NOTES] = str(folder / f"notes of {count}")
        # Each time anew, because its processes have the environment of this one as it is now.
        ray.init(num_cpus=count + 1, include_dashboard=False, object_store_memory=500 * 2**20, log_to_driver=False)

        def run(share=share, out=out, count=count):
            outcome = explain_photos(share, out, Explain(WAITING, batch_size=BATCH), Actors(count))
            assert outcome.explained == len(share) and not outcome.errors

        start = time.time()
        meter = measured(run)
        wall = time.time() - start
        ray.shutdown()
        forwards = noted(Path(os.environ[NOTES]))
        start, end = (forwards[round(len(forwards) * part)][0] for part in (0.3, 0.9))
        done = sum(images for moment, images, _ in forwards if start < moment <= end)
        cpu = sum(meter.between(start, end).values())
        limit = count / SECONDS_PER_PHOTO
        result = {
            "actors": count,
            "rows": len(share),
            "seconds": round(wall, 1),
            "rows/s": round(done / (end - start)),
            "of what the waiting allows": round(done / (end - start) / limit, 2),
            "cores busy": round(cpu / (end - start), 2),
            "CPU ms per row": round(1000 * cpu / done, 3),
            "parts": len(list((out / "maps.parquet").glob("*.parquet"))),
            "load of the machine": round(os.getloadavg()[0], 1),
        }
        print(json.dumps(result), flush=True)
        shutil.rmtree(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "growth"))
    parser.add_argument("--rows", type=int, default=100_000, help="of growth")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8], help="of growth")
    parser.add_argument("--seconds", type=float, default=15, help="of growth, for each number of actors but the last")
    parser.add_argument("--photos", type=int, default=352, help="of cost")
    parser.add_argument("--rounds", type=int, default=2, help="of cost")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "cost":
            cost(Path(folder), arguments.photos, arguments.rounds)
        else:
            growth(Path(folder), arguments.rows, arguments.actors, arguments.seconds)
