"""What the service costs beside the library, and how it holds under load.

    python benchmarks/serving.py --model resnet50 --weights random --seconds 60

Starts ``gradcam-fast serve`` and prints: processor time and page faults of a request against those of a direct call on
the same bytes; failed answers, latency and memory under 64 clients; and the time until the service is ready.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from io import BytesIO
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
DIRECT = """
import sys, time
started = time.perf_counter()
import gradcam_fast, io, json, resource, torch
from gradcam_fast.pipeline.network_source import NetworkSource
from gradcam_fast.pipeline.photo_reading import read_photo
import_seconds = time.perf_counter() - started
torch.set_num_threads(int(sys.argv[4]))
network = NetworkSource(sys.argv[1], weights=sys.argv[2] or None, device="cpu").load()
load_seconds = time.perf_counter() - started - import_seconds
start_cpu = time.process_time()
explainer = gradcam_fast.Explainer(network.model, preprocess=network.preprocess)
data = open(sys.argv[3], "rb").read()
def call():
    explanation = explainer(read_photo(data))
    return explanation.logits.tolist(), explanation.heatmap.numpy().tobytes()
for _ in range(5):
    call()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
calls, before, faults_before = int(sys.argv[5]), time.process_time(), faults()
for _ in range(calls):
    call()
cpu, page_faults = (time.process_time() - before) / calls, (faults() - faults_before) / calls
found = {"cpu": cpu, "faults": page_faults, "import": import_seconds, "load": load_seconds, "start cpu": start_cpu}
print(json.dumps(found))
"""


def photo(width: int = 1024, height: int = 768) -> bytes:
    """A JPEG file with texture, as large as one from the web."""
    import numpy
    from PIL import Image

    noise = numpy.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), dtype=numpy.uint8)
    data = BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
    return data.getvalue()


def direct(options: argparse.Namespace, file: Path, calls: int) -> dict[str, float]:
    """Processor seconds of a direct call, and the seconds of importing and loading, in a process of its own."""
    arguments = [options.model, options.weights or "", str(file), str(options.threads), str(calls)]
    done = subprocess.run([sys.executable, "-c", DIRECT, *arguments], capture_output=True, text=True, check=True)
    values: dict[str, float] = json.loads(done.stdout)
    return values


class Service:
    """The running command; its processor time and its memory."""

    def __init__(self, options: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "gradcam_fast", "serve", "--port", "0", "--name", "m", "--device", "cpu"]
        command += ["--model", options.model, "--threads", str(options.threads)]
        command += ["--weights", options.weights] if options.weights else []
        start = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.start_up = time.perf_counter() - start
        self.start_up_cpu = self.cpu()
        self.port = int(line.split(":")[-1].strip(" /\n"))

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        fields = self._stat()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def faults(self) -> int:
        """Pages that the process got anew from the system so far, without reading them from a disk."""
        return int(self._stat()[7])

    def _stat(self) -> list[str]:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()

    def memory(self) -> float:
        """Resident memory in MB."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> int:
    """Send a photo to be explained on a connection that is kept; the status of the answer."""
    head = "POST /v1/models/m:explain HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(answer.partition("content-length: ")[2].partition("\r\n")[0])
    body = json.loads(await reader.readexactly(length))
    status = int(answer.split()[1])
    return status if status != 200 or body["explanations"][0]["maps"][0]["valid"] is not None else 0


async def load(service: Service, data: bytes, clients: int, seconds: float) -> dict[str, object]:
    """Clients that each send the next request when the last one is answered."""
    statuses: Counter[object] = Counter()
    latencies: list[float] = []
    memory: list[tuple[float, float]] = []
    begin = time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port, limit=2**20)
        while time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            try:
                statuses[await request(reader, writer, data)] += 1
            except (OSError, asyncio.IncompleteReadError) as error:
                statuses[type(error).__name__] += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", service.port, limit=2**20)
            latencies.append(time.perf_counter() - start)
        writer.close()

    async def watch() -> None:
        while True:
            memory.append((time.perf_counter() - begin, service.memory()))
            await asyncio.sleep(0.5)

    watching = asyncio.create_task(watch())
    before, faults = service.cpu(), service.faults()
    await asyncio.gather(*(client() for _ in range(clients)))
    wall = time.perf_counter() - begin
    watching.cancel()
    latencies.sort()
    settled = [megabytes for at, megabytes in memory if at > 10] or [memory[-1][1]]
    rate = len(latencies) / wall
    return {
        "statuses": dict(statuses),
        "per second": round(rate, 2),
        "cpu ms": round(1000 * (service.cpu() - before) / len(latencies), 2),
        "page faults": round((service.faults() - faults) / len(latencies)),
        "p50 s": round(latencies[len(latencies) // 2], 3),
        "p99 s": round(latencies[int(len(latencies) * 0.99)], 3),
        "p99 / (clients / throughput)": round(latencies[int(len(latencies) * 0.99)] / (clients / rate), 2),
        "memory MB after 10 s, last, most": [round(settled[0]), round(settled[-1]), round(max(settled))],
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--calls", type=int, default=30)
    options = parser.parse_args()
    data = photo()
    file = Path(f"photo-{os.getpid()}.jpg")
    file.write_bytes(data)
    try:
        alone = direct(options, file, options.calls)
        service = Service(options)
        try:
            # Taking turns with the direct calls, because other work on the machine changes both.
            asyncio.run(load(service, data, 1, 2))
            single = asyncio.run(load(service, data, 1, options.calls * alone["cpu"] * 1.2))
            again = direct(options, file, options.calls)
            crowd = asyncio.run(load(service, data, options.clients, options.seconds))
        finally:
            service.process.terminate()
            service.process.wait()
    finally:
        file.unlink()
    cpu = 1000 * (alone["cpu"] + again["cpu"]) / 2
    print(f"direct call: {cpu:.1f} ms of processor time; photo of {len(data) / 1000:.0f} kB, {options.model}")
    print(f"one client: {single['cpu ms']} ms, {single['cpu ms'] / cpu:.3f} of a direct call")  # type: ignore[operator]
    print(f"{options.clients} clients: {crowd['cpu ms']} ms, {crowd['cpu ms'] / cpu:.3f} of one")  # type: ignore[operator]
    print(f"page faults: {alone['faults']:.0f}, {single['page faults']} and {crowd['page faults']}")
    print(json.dumps(crowd, indent=2))
    expected = alone["import"] + alone["load"]
    print(f"ready after {service.start_up:.1f} s; importing and loading alone take {expected:.1f} s")
    print(f"in processor time {service.start_up_cpu:.1f} s and {alone['start cpu']:.1f} s")


if __name__ == "__main__":
    main()
