"""What the pages of reference list is what the code has: messages, environment variables, names."""

import ast
import re

import pytest
from support.documents import DOCS, ROOT

PACKAGE = sorted((ROOT / "gradcam_fast").rglob("*.py")) + sorted((ROOT / "build_tools").glob("*.py"))
VARIES = "…"


def text_of(node):
    """A string of the source, with … for what an f-string fills in; None for other nodes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else VARIES for part in node.values)
    return None


@pytest.fixture(scope="module")
def strings():
    nodes = (node for path in PACKAGE for node in ast.walk(ast.parse(path.read_text())))
    return {text for text in map(text_of, nodes) if text}


MESSAGES = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_of_the_page_is_one_of_the_source(message, strings):
    # A message may be cut off at either end.
    parts = message.removeprefix(VARIES).removesuffix(VARIES).strip()
    assert any(parts in text for text in strings)


def test_the_page_has_messages_of_every_kind():
    assert len(MESSAGES) > 20


READ = re.compile(r"""environ(?:\.get)?[\[(]\s*["'](\w+)["']|environ\.get\((?:\w+)\)""")


def variables_of(*sources):
    return {name for source in sources for name in READ.findall(source.read_text()) if name}


def test_every_environment_variable_that_is_read_is_on_its_page_and_no_other_of_ours():
    page = (DOCS / "environment.md").read_text()
    listed = set(re.findall(r"`([A-Z][A-Z_]+)`", page))
    # Set by an environment that is activated, not by users.
    read = variables_of(ROOT / "setup.py", *PACKAGE) - {"VIRTUAL_ENV"}
    assert read <= listed, read - listed
    sources = "".join(path.read_text() for path in (ROOT / "setup.py", *PACKAGE))
    for name in listed:
        if name.startswith("GRADCAM_FAST_"):
            assert name in sources, name


def test_every_variable_of_make_on_the_page_is_one_of_the_makefile():
    section = (DOCS / "environment.md").read_text().partition("## In `make`")[2]
    names = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert names and all(re.search(rf"^(export )?{name} \?=", makefile, re.MULTILINE) for name in names), names


def test_the_api_page_has_every_public_name():
    import gradcam_fast

    page = (DOCS / "api.md").read_text()
    documented = re.findall(r"^::: gradcam_fast\.(.+)$", page, re.MULTILINE)
    elsewhere = {"Preprocess": "preprocess.Preprocess", "figures": "visual.figures"}
    members = {"export", "load"}  # of packages
    pages_of_their_own = {"compat", "methods"}
    for name in dir(gradcam_fast):
        if name not in members | pages_of_their_own:
            assert elsewhere.get(name, name) in documented, name
