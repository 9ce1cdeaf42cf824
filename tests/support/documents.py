"""The code blocks of README.md and docs/: found by one parser, and run as a reader would run them.

A comment in the line above a block, which readers do not see, says what is not usual about it:

- ``<!-- not run: REASON -->``: it cannot run in the tests, for this reason.
- ``<!-- own process: REASON -->``: a block of Python that would change other tests.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))}

PYTHON, SHELL = "python", "sh"
# Blocks that are no code.
PLAIN = {"text", "bibtex", "json"}
OTHER_CODE = {"cpp"}

_FENCE = re.compile(r"^( *)(`{3,})(\w*)[^`]*$")
_MARK = re.compile(r"^ *<!-- (not run|own process): (.+) -->$")


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        page: path in the repository.
        line: of its fence, from 1.
        language: what the fence names.
        code: its text.
        not_run: why it cannot run here, or None.
        own_process: why it needs one, or None.
    """

    page: str
    line: int
    language: str
    code: str
    not_run: str | None = None
    own_process: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return blocks_of(PAGES[page].read_text(encoding="utf-8"), page)


def blocks_of(text: str, page: str) -> list[Block]:
    """The fenced blocks of a text."""
    lines = text.splitlines()
    found, start, marks = [], None, {}
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if start is None and fence:
            start = (number, fence[1], fence[2], fence[3])
            above = _MARK.match(lines[number - 1]) if number else None
            marks = {above[1].replace(" ", "_"): above[2]} if above else {}
        elif start is not None and line.strip() == start[2]:
            code = textwrap.dedent("\n".join(lines[start[0] + 1 : number])) + "\n"
            found.append(Block(page, start[0] + 1, start[3], code, **marks))
            start = None
    if start is not None:
        raise ValueError(f"{page}:{start[0] + 1}: a fence that is not closed")
    return found


def indented_blocks(page: str) -> list[int]:
    """The lines at which a page has code that is indented instead of fenced: this parser would not see it."""
    lines = PAGES[page].read_text(encoding="utf-8").splitlines()
    found, inside = [], False
    for number, line in enumerate(lines):
        if _FENCE.match(line):
            inside = not inside
        elif not inside and line.startswith("    ") and line.strip() and not lines[number - 1].strip():
            found.append(number + 1)
    return found


def python_blocks(name: str) -> list[str]:
    """The code of the Python blocks of a page of docs/, in order."""
    return [block.code for block in blocks(f"docs/{name}") if block.language == PYTHON]


def run_python(page: str) -> dict[str, object]:
    """Run a page's blocks of Python in order, in one namespace as an interpreter has it; returns the namespace."""
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language != PYTHON or block.not_run:
            continue
        if block.own_process:
            run_command([sys.executable, "-c", block.code], block, env={**os.environ, "PYTHONPATH": _python_path()})
        else:
            # As many lines in front as the page has, so that a traceback names the page's own line.
            exec(compile("\n" * block.line + block.code, PAGES[page], "exec"), names)
    return names


def run_shell(page: str, folder: Path) -> None:
    """Run a page's blocks of shell commands in order, in one folder; each stops at the first command that fails."""
    environment = with_commands(folder)
    for block in blocks(page):
        if block.language == SHELL and not block.not_run:
            run_command(["bash", "-euo", "pipefail", "-c", block.code], block, cwd=folder, env=environment)


def run_command(command: list[str], block: Block, **options: object) -> None:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{block} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"


def with_commands(folder: Path) -> dict[str, str]:
    """An environment whose `gradcam-fast` and `python` are of this interpreter, also as they are after `make demo`."""
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    for name, arguments in (("python", ""), ("gradcam-fast", "-m gradcam_fast")):
        script = binaries / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
        script.chmod(0o755)
    path = os.pathsep.join([str(binaries), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": _python_path()}


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
