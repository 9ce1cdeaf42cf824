"""Ray on a cluster of this machine: the command line's rows, whatever photos, processes and runs come to."""

import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path

import pandas
import pyarrow
import pyarrow.parquet
import pytest

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
from support import fragile, full_disk  # noqa: E402
from support.red_or_blue import photo  # noqa: E402

from gradcam_fast.batch import Actors, Explain, PartNames, explain_photos, explained, ray_engine  # noqa: E402
from gradcam_fast.cli import main  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="kills processes")]
COUNT, BAD = 200, 5
# Where Ray's processes find the package and the network.
TESTS = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
EXPLAIN = Explain(fragile.SOURCE, batch_size=8)


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    """The folder whose files tell the network in Ray's processes what to do."""
    folder = tmp_path_factory.mktemp("orders")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(fragile.FOLDER, str(folder))
        environment.setenv("PYTHONPATH", os.pathsep.join(filter(None, [*TESTS, os.environ.get("PYTHONPATH")])))
        yield folder


@pytest.fixture(scope="module")
def cluster(orders):
    """A cluster of three logical cores, for one actor, or two; its address."""
    context = ray.init(num_cpus=3, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    yield context.address_info["address"]
    ray.shutdown()


@pytest.fixture(autouse=True)
def no_orders(orders):
    for name in ("slow", "kill", "processes"):
        (orders / name).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """200 photos in two folders, of which five cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for number in range(COUNT - BAD):
        place = folder / "more" if number % 3 else folder
        photo("red" if number % 2 else "blue", (number % 7, number * 3 % 7), scale=2).save(place / f"{number:03}.png")
    for number in range(BAD):
        (folder / f"bad {number}.jpg").write_bytes(b"no photo" * number)
    return folder


@pytest.fixture(scope="module")
def paths(photos):
    return sorted(map(str, photos.rglob("*.[jp][pn]g")))


@pytest.fixture(scope="module")
def expected(photos, tmp_path_factory):
    """The table that one process makes."""
    out = tmp_path_factory.mktemp("expected")
    explain = ["explain", str(photos), "--out", str(out), *fragile.OPTIONS, "--format", "parquet", "--quiet"]
    assert main([*explain, "--topk", "2"]) == 1
    return pyarrow.parquet.read_table(out / "maps.parquet")


def rows_of(table):
    rows = [{name: None if value != value else value for name, value in row.items()} for row in table.to_pylist()]
    return sorted(rows, key=lambda row: (row["path"], row["class"]))


def read(out):
    return pyarrow.parquet.read_table(out / "maps.parquet")


def counts(outcome):
    return outcome.explained, len(outcome.errors), outcome.earlier


def assert_each_photo_once(table, paths):
    assert Counter(table["path"].to_pylist()) == Counter(paths)


def test_the_command_makes_the_same_table_with_ray(cluster, photos, expected, tmp_path, capsys):
    command = ["explain", str(photos), "--out", str(tmp_path), *fragile.OPTIONS, "--format", "parquet", "--topk", "2"]
    assert main([*command, "--engine", "ray", "--batch-size", "8", "--no-progress"]) == 1
    lines = capsys.readouterr()
    assert re.fullmatch(rf"195 photos explained in .*\), 5 skipped; see {tmp_path}\n", lines.out)
    skipped = [line for line in lines.err.splitlines() if re.match("gradcam-fast: (?!note)", line)]
    bad = sorted(photos.glob("bad*.jpg"))
    assert skipped == [f"gradcam-fast: {path}: not a photo in a format that Pillow reads; skipped" for path in bad]
    table = read(tmp_path)
    assert table.schema.equals(expected.schema, check_metadata=True)
    assert len(table) == 195 * 2 + 5
    assert rows_of(table) == rows_of(expected)
    frame = pandas.read_parquet(tmp_path / "maps.parquet")
    assert frame["error"].notna().sum() == BAD
    assert main(["render", str(tmp_path / "maps.parquet"), "--out", str(tmp_path / "pictures"), "--quiet"]) == 0
    assert len(list((tmp_path / "pictures").rglob("*.jpg"))) == 195 * 2


def test_a_second_run_refuses_the_table_and_with_resume_adds_what_is_new(cluster, orders, paths, tmp_path):
    assert counts(explain_photos(paths[:20], tmp_path, EXPLAIN, Actors(1))) == (20, 0, 0)
    with pytest.raises(FileExistsError, match="--resume"):
        explain_photos(paths, tmp_path, EXPLAIN)
    with pytest.raises(ValueError, match="was made with topk=1, not 2"):
        explain_photos(paths, tmp_path, Explain(fragile.SOURCE, topk=2), resume=True)
    (orders / "processes").unlink()
    assert counts(explain_photos(paths[:40], tmp_path, EXPLAIN, Actors(1), resume=True)) == (20, 0, 20)
    assert counts(explain_photos(paths[:40], tmp_path, EXPLAIN, Actors(1), resume=True)) == (0, 0, 40)
    assert_each_photo_once(read(tmp_path), paths[:40])
    assert {process[1:] for process in fragile.processes(orders)} == {(1, 1)}


def test_nothing_is_lost_or_doubled_if_an_actor_is_killed(cluster, orders, paths, expected, tmp_path):
    (orders / "slow").touch()
    killed = []

    def kill_after_some_batches():
        while len(seen := fragile.processes(orders)) < 8:
            time.sleep(0.05)
        killed.append(seen[-1][0])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_after_some_batches, daemon=True)
    killer.start()
    topk_2 = Explain(fragile.SOURCE, batch_size=8, topk=2)
    names = pyarrow.table({name: expected[name] for name in ("path", "name")})
    outcome = explain_photos(names, tmp_path, topk_2, Actors(1), rows_per_part=32)
    killer.join(timeout=10)
    assert killed and {pid for pid, *_ in fragile.processes(orders)} > set(killed)
    assert counts(outcome) == (195, 5, 0)
    assert rows_of(read(tmp_path)) == rows_of(expected)


def test_a_photo_that_kills_its_process_gets_a_row_that_says_so(cluster, paths, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "_RETRIES", 0)
    poison = str(tmp_path / "poison.png")
    photo("lime", (3, 3), scale=2).save(poison)
    wanted = [*paths[:30], poison, *paths[30:60]]
    outcome = explain_photos(wanted, tmp_path / "out", EXPLAIN, Actors(1))
    assert counts(outcome) == (60, 1, 0)
    table = read(tmp_path / "out")
    assert_each_photo_once(table, wanted)
    errors = dict(zip(table["path"].to_pylist(), table["error"].to_pylist(), strict=True))
    assert errors.pop(poison) == outcome.errors[0]
    assert outcome.errors[0].startswith(f"{poison}: explaining it failed")
    assert set(errors.values()) == {None}


def test_a_run_whose_driver_was_killed_is_resumed_without_gap_or_double(cluster, orders, paths, tmp_path):
    (orders / "slow").touch()
    out = tmp_path / "out"
    driver = f"""
import ray; ray.init({cluster!r}, log_to_driver=False)
from pathlib import Path
from gradcam_fast.batch import Actors, Explain, explain_photos
from support import fragile
explain = Explain(fragile.SOURCE, batch_size=4)
explain_photos({paths!r}, Path({str(out)!r}), explain, Actors(1), rows_per_part=16)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", driver], env=environment, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("maps.parquet/part-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    (out / "maps.parquet" / ".0123.gradcam-part").write_bytes(b"half a part")
    before = len(read(out))
    assert 0 < before < len(paths)
    (orders / "slow").unlink()
    outcome = explain_photos(paths, out, Explain(fragile.SOURCE, batch_size=4), Actors(1), resume=True)
    assert outcome.earlier >= before and sum(counts(outcome)) == len(paths) > outcome.earlier
    assert_each_photo_once(read(out), paths)
    assert not list(out.glob("maps.parquet/.*"))


def test_other_sources_are_datasets_and_go_to_parquet_by_ray(cluster, photos, expected, tmp_path):
    files = ray.data.read_binary_files(str(photos / "more"), include_paths=True)
    explain = Explain(fragile.SOURCE, topk=2)
    maps = explained(files, explain, Actors(1))
    maps.write_parquet(
        str(tmp_path / "maps.parquet"),
        filename_provider=PartNames(),
        schema=explain.schema,
        min_rows_per_file=100,
    )
    more = [row for row in rows_of(expected) if "/more/" in row["path"]]
    made = rows_of(read(tmp_path))
    assert [{**row, "name": ""} for row in made] == [{**row, "name": ""} for row in more]
    assert main(["render", str(tmp_path / "maps.parquet"), "--out", str(tmp_path / "pictures"), "--quiet"]) == 0


def from_parquet(photos, folder):
    pyarrow.parquet.write_table(photos, folder / "photos.parquet")
    return ray.data.read_parquet(str(folder / "photos.parquet"))


def from_lance(photos, folder):
    lance = pytest.importorskip("lance", reason="Lance is not installed; pip install pylance")
    lance.write_dataset(photos, folder / "photos.lance")
    return ray.data.read_lance(str(folder / "photos.lance"))


def from_webdataset(photos, folder):
    with tarfile.open(folder / "photos.tar", "w") as shard:
        for row in photos.to_pylist():
            file = tarfile.TarInfo(f"{row['path']}.png")
            file.size = len(row["bytes"])
            shard.addfile(file, io.BytesIO(row["bytes"]))
    samples = ray.data.read_webdataset(str(folder / "photos.tar"), decoder=None)
    return samples.rename_columns({"__key__": "path", "png": "bytes"})


@pytest.mark.parametrize("source", [from_parquet, from_lance, from_webdataset])
def test_a_source_that_has_the_files_gives_the_rows_of_their_bytes(cluster, photos, tmp_path, source):
    files = [*sorted(photos.glob("00*.png")), photos / "bad 3.jpg"]
    table = pyarrow.table({"path": [path.stem for path in files], "bytes": [path.read_bytes() for path in files]})
    maps = explained(source(table, tmp_path), EXPLAIN, Actors(1))
    made = pyarrow.concat_tables(ray.get(maps.to_arrow_refs())).select(EXPLAIN.schema.names)
    assert len(made) > 2 and rows_of(made) == rows_of(EXPLAIN(table))


def test_a_dataset_with_a_checkpoint_goes_on_where_it_was(cluster, photos, tmp_path):
    context = ray.data.DataContext.get_current().copy()
    context.checkpoint_config = ray.data.checkpoint.CheckpointConfig(
        "path", str(tmp_path / "done"), delete_checkpoint_on_success=False
    )
    first = sorted(map(str, photos.glob("0*.png")))
    for paths in (first[:4], first[:6]):
        with ray.data.DataContext.current(context):
            files = ray.data.read_binary_files(paths, include_paths=True)
            maps = explained(files, EXPLAIN, Actors(1))
            maps.write_parquet(str(tmp_path / "maps.parquet"), filename_provider=PartNames(), schema=EXPLAIN.schema)
    assert_each_photo_once(read(tmp_path), first[:6])


def test_actors_that_do_not_fit_into_the_cluster_are_refused(cluster, paths, tmp_path):
    with pytest.raises(ValueError, match="need 4 CPUs, but the cluster has 3"):
        explain_photos(paths, tmp_path, EXPLAIN, Actors(3))
    with pytest.raises(ValueError, match="2 actors need 2 GPUs, but the cluster has 0"):
        explain_photos(paths, tmp_path, EXPLAIN, Actors(2, gpus=1))
    assert not (tmp_path / "maps.parquet").exists()


def test_a_checkpoint_takes_a_core_more(cluster, paths, tmp_path):
    context = ray.data.DataContext.get_current().copy()
    context.checkpoint_config = ray.data.checkpoint.CheckpointConfig("path", str(tmp_path))
    with ray.data.DataContext.current(context):
        dataset = ray.data.from_arrow(pyarrow.table({"path": paths}))
    with pytest.raises(ValueError, match="need 4 CPUs, but the cluster has 3"):
        explained(dataset, EXPLAIN, Actors(2))


def test_a_network_that_no_process_can_load_is_refused_before_any_work(cluster, paths, tmp_path):
    with pytest.raises(ValueError, match="layer 'nowhere' is not in"):
        explain_photos(paths, tmp_path, Explain(fragile.SOURCE, layer="nowhere"))
    assert not (tmp_path / "maps.parquet").exists()


def test_a_run_in_which_too_much_fails_ends_with_the_reason(cluster, orders, paths, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(ray_engine, "TableSink", full_disk.TableSink)
    with pytest.raises(RuntimeError, match=r"Ray gave up .*No space left on device.*--resume"):
        explain_photos(paths[:16], out, EXPLAIN, Actors(1), max_failures=0)


def test_photos_with_bytes_are_for_datasets(cluster, tmp_path):
    with pytest.raises(ValueError, match="has a column bytes"):
        explain_photos(pyarrow.table({"path": ["a.png"], "bytes": [b""]}), tmp_path, EXPLAIN)
