"""docs/batch.md: its lines of Python do what they say, and its options exist."""

import re

from support.documents import DOCS, python_blocks, run_python

from gradcam_fast.cli import main


def test_the_lines_of_python_do_what_they_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_python("docs/batch.md")
    promised = re.findall(r"^print\(.+\)  # (.+)$", "\n".join(python_blocks("batch.md")), re.MULTILINE)
    assert len(promised) == 7 and capsys.readouterr().out.splitlines() == promised


def test_its_options_are_options_of_explain(capsys):
    text = (DOCS / "batch.md").read_text()
    main(["explain", "--help"])
    options = capsys.readouterr().out
    assert set(re.findall(r"--[a-z][a-z-]+", text)) <= set(re.findall(r"--[a-z][a-z-]+", options))
