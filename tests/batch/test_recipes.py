"""The recipe of docs/batch.md for Dask, where it is installed."""

import pyarrow
import pytest
from support import fragile
from support.red_or_blue import photo

from gradcam_fast.batch import Explain

EXPLAIN = Explain(fragile.SOURCE, batch_size=2)


@pytest.fixture
def pieces(tmp_path):
    """Six photos and a missing one, in tables of two."""
    for number in range(6):
        photo("red" if number % 2 else "blue", (number, number)).save(tmp_path / f"{number}.png")
    paths = [*sorted(map(str, tmp_path.iterdir())), str(tmp_path / "missing.png")]
    return [pyarrow.table({"path": paths[start : start + 2]}) for start in range(0, 7, 2)]


def assert_all_explained(table, pieces):
    expected = pyarrow.concat_tables(map(EXPLAIN, pieces))
    assert table.schema.names == expected.schema.names
    for name in ("path", "class", "map", "error"):
        assert table[name].to_pylist() == expected[name].to_pylist()


@pytest.mark.parametrize("scheduler", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_dask(pieces, scheduler):
    dask = pytest.importorskip("dask", reason="dask is not installed")
    tables = dask.compute(*[dask.delayed(EXPLAIN)(piece) for piece in pieces], scheduler=scheduler, num_workers=2)
    assert_all_explained(pyarrow.concat_tables(tables), pieces)
