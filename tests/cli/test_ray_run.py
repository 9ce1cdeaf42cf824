"""What ``explain --engine ray`` refuses before Ray starts; what it does is tested on a cluster, with the engine."""

import pytest

pytest.importorskip("ray")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))


def test_formats_other_than_the_table_are_refused(run, small, tmp_path):
    photos = small(2)
    status, _, errors = run(
        "explain", *photos, "--engine", "ray", "--format", "overlay,parquet", "--out", tmp_path / "o"
    )
    assert status == 2
    assert errors == [
        "gradcam-fast: --format: --engine ray writes a table of maps and no overlay; give --format parquet, and draw "
        "pictures of the table with 'gradcam-fast render'"
    ]


def test_actors_are_for_ray(run, small):
    status, _, errors = run("explain", *small(1), "--actors", "2")
    assert status == 2 and "--actors is for --engine ray" in errors[0]


@pytest.mark.parametrize(
    ("option", "message"),
    [(("--topk", "3"), "--topk: 3 is more than"), (("--layer", "nowhere"), "layer 'nowhere' is not in")],
)
def test_a_question_that_the_network_cannot_answer_is_refused(run, small, tmp_path, option, message):
    from gradcam_fast.batch import explain

    explain._asked.cache_clear()
    status, _, errors = run("explain", *small(1), "--engine", "ray", *option, "--out", tmp_path / "o")
    assert status == 2 and message in errors[-1]
    assert not (tmp_path / "o" / "maps.parquet").exists()


def test_a_folder_without_photos_needs_no_cluster(run, tmp_path):
    (tmp_path / "empty").mkdir()
    status, _, errors = run("explain", tmp_path / "empty", "--engine", "ray", "--out", tmp_path / "o")
    assert status == 1 and errors == [f"gradcam-fast: {tmp_path / 'empty'}: no photos in this folder; skipped"]
