"""Every code block of README.md and docs/ runs as it stands there, but for those that say why they cannot.

The blocks of a page run in order, in one namespace, in a folder with photos and a video. Where an example downloads
trained weights, the model stays untrained.
"""

import re
import shutil
import sys
import warnings

import pytest
from PIL import Image
from support import documents, films
from support.command import CHELSEA
from support.documents import PAGES, PYTHON, SHELL
from support.untrained import without_downloads

# Compile a network, train one, or explain for more than a few seconds.
SLOW = {"docs/compiled.md", "docs/integrations.md", "docs/methods.md", "docs/metrics.md"}
# Pages whose blocks other tests run, on a smaller network.
RUN_ELSEWHERE = {"docs/export.md": "tests/test_docs_export.py", "docs/serving.md": "tests/serving/test_docs_serving.py"}


def pages_with(language, slow=None):
    return [
        pytest.param(page, marks=[pytest.mark.slow] if slow or page in SLOW else [])
        for page in PAGES
        if page not in RUN_ELSEWHERE
        if any(block.language == language and not block.not_run for block in documents.blocks(page))
    ]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder as a reader's: cat.jpg, coffee.jpg, a folder photos/ with both, and street.mp4."""
    monkeypatch.chdir(tmp_path)
    films.save(tmp_path / "street.mp4", films.pictures(6))
    (tmp_path / "photos").mkdir()
    for name, source in (("cat.jpg", CHELSEA), ("coffee.jpg", CHELSEA.with_name("coffee.png"))):
        with Image.open(source) as photo:
            photo.convert("RGB").save(tmp_path / name, quality=95)
        shutil.copy(tmp_path / name, tmp_path / "photos" / name)
    return tmp_path


@pytest.mark.parametrize("page", pages_with(PYTHON))
def test_the_python_of_a_page_runs(page, reader, monkeypatch):
    without_downloads(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        documents.run_python(page)


@pytest.mark.parametrize("page", pages_with(SHELL, slow=True))
def test_the_commands_of_a_page_run(page, reader):
    documents.run_shell(page, reader)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_seen_by_these_tests(page):
    assert not documents.indented_blocks(page), "code is indented there; put it between fences that name its language"
    for block in documents.blocks(page):
        assert block.language in {PYTHON, SHELL, *documents.PLAIN, *documents.OTHER_CODE}, block
        if block.language in documents.OTHER_CODE:
            assert block.not_run, f"{block}: say which test compiles it, <!-- not run: REASON -->"


def test_a_block_that_fails_fails_the_test(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("Text.\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n\n```sh\nfalse\ntrue\n```\n")
    monkeypatch.setitem(PAGES, "page.md", page)
    with pytest.raises(AssertionError) as failure:
        documents.run_python("page.md")
    assert failure.traceback[-1].lineno + 1 == 8 and failure.traceback[-1].path == page
    with pytest.raises(AssertionError, match=r"page.md:11 ended with 1"):
        documents.run_shell("page.md", tmp_path)


def test_marks_and_languages_are_read():
    text = "<!-- not run: needs a GPU -->\n```python\nx\n```\n- a list\n\n  ```sh\n  ls\n  ```\n"
    python, shell = documents.blocks_of(text, "p")
    assert (python.not_run, python.code, python.line) == ("needs a GPU", "x\n", 2)
    assert (shell.language, shell.code, shell.not_run) == (SHELL, "ls\n", None)


def test_the_reader_has_the_commands_of_this_interpreter(reader):
    environment = documents.with_commands(reader)
    assert shutil.which("gradcam-fast", path=environment["PATH"]) == str(reader / ".venv/bin/gradcam-fast")
    assert sys.executable in (reader / ".venv/bin/python").read_text()


@pytest.mark.parametrize(("page", "tests"), RUN_ELSEWHERE.items())
def test_pages_that_are_run_elsewhere_are(page, tests):
    text = (documents.ROOT / tests).read_text()
    assert PAGES[page].name in text and "exec(" in text


def test_reasons_are_sentences_that_name_files_which_exist():
    reasons = [block.not_run or block.own_process for page in PAGES for block in documents.blocks(page)]
    for reason in filter(None, reasons):
        assert re.search(r"\w+ \w+", reason), reason
        for path in re.findall(r"tests/[\w/]+(?:\.py)?", reason):
            assert (documents.ROOT / path).exists(), reason
