"""The recipes of docs/batch.md for Dask, Spark and Daft, where they are installed: the rows of `Explain` alone.

The tests run the page's own lines, with a small network.
"""

import os
import shutil
import sys
from pathlib import Path

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from support import documents, fragile
from support.red_or_blue import photo

from gradcam_fast.batch import Explain
from gradcam_fast.cli import main

EXPLAIN = Explain(fragile.SOURCE, batch_size=2)
INSTALL = "is not installed; pip install '.[recipes]'"


@pytest.fixture
def folder(tmp_path):
    """Six photos, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        photo("red" if number % 2 else "blue", (number, number)).save(folder / f"{number}.png")
    (folder / "text.png").write_text("no photo")
    return folder


@pytest.fixture
def pieces(folder):
    """The photos and a missing one, in tables of two."""
    paths = [*sorted(map(str, folder.iterdir())), str(folder / "missing.png")]
    return [pyarrow.table({"path": paths[start : start + 2]}) for start in range(0, len(paths), 2)]


@pytest.fixture
def spark(monkeypatch, tmp_path):
    """A session of Spark with two workers on this machine."""
    sql = pytest.importorskip("pyspark.sql", reason=f"Spark {INSTALL}")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java, which is not installed; apt-get install openjdk-17-jre-headless")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.chdir(tmp_path)
    options = {"spark.ui.enabled": False, "spark.driver.memory": "512m", "spark.driver.bindAddress": "127.0.0.1"}
    session = sql.SparkSession.builder.master("local[2]").config(map=options).getOrCreate()
    yield session
    session.stop()


def run_recipe(word, explain=EXPLAIN):
    """The maps of the recipe in docs/batch.md that has a word in it, with ``explain``, beside the folder photos."""
    (code,) = [code for code in documents.python_blocks("batch.md") if word in code]
    names = {"explain": explain, "pyarrow": pyarrow}
    exec(code, names)
    return names["maps"]


def assert_rows_of_explain_alone(maps, pieces, explain=EXPLAIN):
    """The rows are those that ``explain`` makes of these pieces in this process, in any order."""
    assert maps.schema.equals(explain.schema, check_metadata=True)
    assert in_order(maps) == in_order(pyarrow.concat_tables(map(explain, pieces)))


def in_order(maps):
    rows = sorted(maps.to_pylist(), key=lambda row: (row["path"], row["class"]))
    return [{name: None if value != value else value for name, value in row.items()} for row in rows]


@pytest.mark.parametrize("scheduler", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_dask(pieces, scheduler):
    dask = pytest.importorskip("dask", reason="Dask is not installed")
    tables = dask.compute(*[dask.delayed(EXPLAIN)(piece) for piece in pieces], scheduler=scheduler, num_workers=2)
    assert_rows_of_explain_alone(pyarrow.concat_tables(tables), pieces)


@pytest.mark.slow
@pytest.mark.parametrize("topk", [1, 2])
def test_spark(spark, monkeypatch, folder, topk):
    monkeypatch.chdir(folder.parent)
    explain = Explain(fragile.SOURCE, topk=topk, batch_size=2)
    maps = run_recipe("pyspark", explain)
    relative = [pyarrow.table({"path": [f"photos/{path.name}" for path in folder.iterdir()]})]
    assert len(maps) == 6 * topk + 1
    assert_rows_of_explain_alone(maps, relative, explain)


@pytest.mark.slow
def test_spark_reads_the_files(spark, folder):
    photos = spark.read.format("binaryFile").load(str(folder)).selectExpr("path", "content AS bytes")
    columns = spark.createDataFrame(EXPLAIN.schema.empty_table()).schema
    maps = photos.repartition(3).mapInArrow(EXPLAIN.batches, columns).toArrow().cast(EXPLAIN.schema)
    pieces = [pyarrow.table({"path": [f"file:{path}"], "bytes": [path.read_bytes()]}) for path in folder.iterdir()]
    assert_rows_of_explain_alone(maps, pieces)


@pytest.mark.slow
@pytest.mark.parametrize("topk", [1, 2])
def test_daft(monkeypatch, folder, topk):
    pytest.importorskip("daft", reason=f"Daft {INSTALL}")
    monkeypatch.chdir(folder.parent)
    explain = Explain(fragile.SOURCE, topk=topk, batch_size=2)
    maps = run_recipe("daft", explain)
    addresses = [pyarrow.table({"path": [path.as_uri() for path in folder.iterdir()]})]
    assert len(maps) == 6 * topk + 1
    assert_rows_of_explain_alone(maps, addresses, explain)


def test_maps_of_a_recipe_are_a_table_that_render_draws(monkeypatch, folder):
    pytest.importorskip("dask", reason="Dask is not installed")
    monkeypatch.chdir(folder.parent)
    (folder / "0.png").rename(folder / "cat.jpg")
    (folder / "1.png").rename(folder / "coffee.jpg")
    maps = run_recipe("dask")
    pyarrow.parquet.write_table(maps, "maps.parquet")
    assert main(["render", "maps.parquet", "--out", "pictures", "--quiet"]) == 0
    pictures = [path.name for path in sorted(Path("pictures").iterdir())]
    assert pictures == ["cat-gradcam.overlay.jpg", "coffee-gradcam.overlay.jpg"]
    assert pandas.read_parquet("maps.parquet")["error"].dropna().tolist() == ["missing.jpg: no such file"]
