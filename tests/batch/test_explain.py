"""`Explain`: the rows of the command line's table, from paths or bytes, in any process; a bad photo is a row."""

import os
import pickle
import warnings

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from support.red_or_blue import SIDE, photo

from gradcam_fast.batch import Explain
from gradcam_fast.cli import main
from gradcam_fast.pipeline.map_rows import SCHEMA
from gradcam_fast.pipeline.network_source import NetworkSource

RED_OR_BLUE = NetworkSource(
    "support.red_or_blue:model", size=(SIDE, SIDE), mean=(0, 0, 0), std=(1, 1, 1), crop=None, probabilities="softmax"
)
OPTIONS = ["--model", RED_OR_BLUE.model, "--size", SIDE, "--mean", *"000", "--std", *"111", "--crop", "none"]
OPTIONS += ["--probabilities", "softmax", "--format", "parquet", "--quiet"]


@pytest.fixture
def paths(tmp_path):
    """Five good photos; a text, an empty file, a folder and a missing file among them."""
    for number in range(5):
        photo("red" if number % 2 else "blue", (number, 6 - number)).save(tmp_path / f"{number}.png")
    (tmp_path / "0-text.jpg").write_text("no photo")
    (tmp_path / "1-empty.png").write_bytes(b"")
    (tmp_path / "2-folder.jpg").mkdir()
    return [*sorted(map(str, tmp_path.iterdir())), str(tmp_path / "3-missing.png")]


@pytest.fixture
def good(paths):
    """The paths of the good photos."""
    return [path for path in paths if path[-5].isdigit()]


def of_paths(paths):
    return pyarrow.table({"path": paths})


def by_photo_and_class(table):
    return sorted(table.to_pylist(), key=lambda row: (row["path"], row["class"]))


def without_nan(rows):
    return [{name: None if value != value else value for name, value in row.items()} for row in rows]


@pytest.mark.parametrize("topk", [1, 2])
def test_rows_and_schema_are_those_of_the_command_line(paths, tmp_path, topk):
    files = [path for path in paths if not os.path.isdir(path)]
    out = tmp_path / "out"
    assert main(["explain", *files, "--out", str(out), "--topk", str(topk), *map(str, OPTIONS)]) == 1
    expected = pyarrow.parquet.read_table(out / "maps.parquet")
    table = Explain(RED_OR_BLUE, topk=topk, batch_size=2)(of_paths(files))
    assert len(table) == 5 * topk + 3
    assert table.schema.equals(expected.schema, check_metadata=True)
    assert without_nan(by_photo_and_class(table)) == without_nan(by_photo_and_class(expected))


@pytest.mark.parametrize("topk", [1, 2])
def test_lists_have_the_rows_of_each_photo(paths, topk):
    explain = Explain(RED_OR_BLUE, topk=topk, batch_size=2)
    lists = explain.lists(of_paths(paths))
    assert lists.type == pyarrow.list_(pyarrow.struct(explain.schema))
    assert [{row["path"] for row in rows} for rows in lists.to_pylist()] == [{path} for path in paths]
    assert [len(rows) for rows in lists.to_pylist()] == [topk if path[-5].isdigit() else 1 for path in paths]
    rows = [row for of_photo in lists.to_pylist() for row in of_photo]
    assert without_nan(rows) == without_nan(explain(of_paths(paths)).to_pylist())
    assert explain.lists(of_paths([]).cast(pyarrow.schema([("path", pyarrow.string())]))).to_pylist() == []


def test_a_photo_that_cannot_be_read_is_one_row_with_its_reason_and_the_others_have_none(paths):
    table = Explain(RED_OR_BLUE)(of_paths(paths)).to_pandas().set_index("path")
    reasons = {os.path.basename(path): error for path, error in table["error"].dropna().items()}
    assert list(table.index) == paths
    assert sorted(reasons) == ["0-text.jpg", "1-empty.png", "2-folder.jpg", "3-missing.png"]
    assert all(error.startswith(path) for path, error in table["error"].dropna().items())
    assert "Pillow" in reasons["0-text.jpg"] and "no such file" in reasons["3-missing.png"]
    bad = table[table["error"].notna()]
    assert set(bad["class"]) == {-1} and set(bad["map"]) == {b""} and set(bad["map_height"]) == {0}


def test_bytes_give_the_same_rows_as_the_file(good):
    contents = [open(path, "rb").read() for path in good]
    from_bytes = Explain(RED_OR_BLUE)(pyarrow.table({"path": good, "bytes": contents}))
    assert from_bytes.equals(Explain(RED_OR_BLUE)(of_paths(good)), check_metadata=True)


def test_with_bytes_nothing_is_read(tmp_path):
    photo().save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    table = Explain(RED_OR_BLUE)(pyarrow.table({"path": ["s3://nowhere/a.png"], "bytes": [data]}))
    assert table["class_name"].to_pylist() == ["class 0"] and table["path"].to_pylist() == ["s3://nowhere/a.png"]


def test_an_address_is_read_by_its_file_system_and_kept_as_it_is(tmp_path):
    photo().save(tmp_path / "a.png")
    (tmp_path / "large.png").write_bytes(bytes(2**21))
    names = ["a.png", "missing.png", "large.png", ""]
    addresses = [f"file://{tmp_path}/{name}" for name in names] + ["nothing://a.png"]
    table = Explain(RED_OR_BLUE, max_pixels=224 * 224)(of_paths(addresses))
    assert table["path"].to_pylist() == addresses
    errors = table["error"].to_pylist()
    assert errors[0] is None and table["name"].to_pylist()[0].endswith("a-gradcam")
    assert errors[1] == f"{addresses[1]}: no such file"
    assert errors[2] == f"{addresses[2]}: a file of 2,097,152 bytes is too large for a photo of 50,176 pixels"
    assert errors[3] == f"{addresses[3]}: not a regular file"
    assert errors[4].startswith("nothing://a.png: ")


def test_a_path_that_is_not_utf8_keeps_its_bytes(tmp_path):
    data = os.fsencode(tmp_path) + b"/caf\xe9.png"
    photo().save(os.fsdecode(data))
    table = Explain(RED_OR_BLUE)(pyarrow.table({"path": [f"{tmp_path}/caf\\xe9.png"], "path_bytes": [data]}))
    assert table["path_bytes"].to_pylist() == [data] and table["error"].to_pylist() == [None]
    assert table["path"].to_pylist() == [f"{tmp_path}/caf\\xe9.png"]


def test_names_are_made_from_paths_unless_they_are_given(good):
    photos = pyarrow.table({"path": good[:1] * 2, "name": ["a/b", None]})
    assert Explain(RED_OR_BLUE)(photos)["name"].to_pylist() == ["a/b", "0-gradcam"]


@pytest.mark.parametrize("chunks", [1, 2, 5])
def test_rows_do_not_depend_on_how_photos_are_split(paths, chunks):
    explain = Explain(RED_OR_BLUE, batch_size=3, threads=1)
    whole = explain(of_paths(paths))
    parts = pyarrow.concat_tables([explain(of_paths(paths[start::chunks])) for start in range(chunks)])
    assert without_nan(by_photo_and_class(parts)) == without_nan(by_photo_and_class(whole))


def test_an_empty_table_gives_an_empty_table_of_the_same_schema():
    table = Explain(RED_OR_BLUE)(pyarrow.table({"path": pyarrow.array([], pyarrow.string())}))
    assert len(table) == 0 and table.schema.names == SCHEMA.names


def test_record_batches_stream_through(paths):
    batches = of_paths(paths).to_batches(max_chunksize=4)
    explained = list(Explain(RED_OR_BLUE).batches(iter(batches)))
    assert [len(batch) for batch in explained] == [4, 4, 1]
    assert all(isinstance(batch, pyarrow.RecordBatch) for batch in explained)


def test_a_copy_sent_by_pickle_takes_no_weights_along_and_explains_alike(good):
    explain = Explain(RED_OR_BLUE, topk=2)
    before = explain(of_paths(good))
    data = pickle.dumps(explain)
    assert len(data) < 1000
    assert pickle.loads(data)(of_paths(good)).equals(before)


def test_equal_instances_share_one_network():
    assert Explain(RED_OR_BLUE).load() is Explain(RED_OR_BLUE).load()


def test_tables_that_pandas_made_are_taken(paths):
    frame = pandas.DataFrame({"path": paths[:1], "label": [3]})
    assert len(Explain(RED_OR_BLUE)(pyarrow.Table.from_pandas(frame))) == 1


def test_memory_that_arrow_holds_is_read_without_warnings(good):
    data = pyarrow.array([open(good[0], "rb").read()], pyarrow.large_binary())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Explain(RED_OR_BLUE)(pyarrow.table({"path": good[:1], "bytes": data}))["error"].null_count == 1


@pytest.mark.parametrize(
    ("photos", "message"),
    [
        ({"file": ["a.png"]}, "has the columns file, and none named path"),
        ({"path": [b"a.png"]}, "the column path is of type binary; cast it to string"),
        ({"path": ["a.png"], "bytes": ["text"]}, "the column bytes is of type string; cast it to binary"),
        ({"path": [None]}, "has no path"),
    ],
)
def test_a_table_that_is_not_one_of_photos_is_refused_in_a_sentence(photos, message):
    with pytest.raises(ValueError, match=message):
        Explain(RED_OR_BLUE)(pyarrow.table(photos))


def test_a_question_that_the_network_cannot_answer_is_refused_before_any_photo(paths):
    with pytest.raises(ValueError, match="topk: 3 is more than this network's 2 classes"):
        Explain(RED_OR_BLUE, topk=3)(of_paths(paths))
    with pytest.raises(ValueError, match="layer 'nowhere' is not in"):
        Explain(RED_OR_BLUE, layer="nowhere").load()


def test_an_error_that_is_not_about_one_photo_reaches_the_caller(paths):
    source = NetworkSource(
        "support.red_or_blue:model", size=(4, 4), mean=(0, 0, 0), std=(1, 1, 1), probabilities="softmax"
    )
    with pytest.raises(ValueError, match="does not run on an input of shape"):
        Explain(source)(of_paths(paths))
