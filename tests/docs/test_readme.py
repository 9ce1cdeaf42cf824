"""README.md is short, and what it and docs/ point to exists."""

import re

import pytest
from support.documents import PAGES, ROOT, blocks

README = PAGES["README.md"].read_text()
LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_it_has_at_most_700_words():
    assert len(README.split()) <= 700


def test_its_first_screen_has_picture_code_commands_and_the_state_of_the_gpu():
    first_screen = "\n".join(README.splitlines()[:45])
    assert "![" in first_screen and "docs/pictures/bobsled-or-helmet.jpg" in first_screen
    assert {"python", "sh"} <= {block.language for block in blocks("README.md") if block.line < 45}
    assert "make demo" in first_screen and "has not met a GPU yet" in first_screen


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_to_one(page):
    links = [link for link in LINK.findall(PAGES[page].read_text()) if not re.match(r"\w+:|#", link)]
    for link in links:
        target = PAGES[page].parent / link.partition("#")[0]
        assert target.exists(), f"{page}: {link}"
        assert target.resolve().is_relative_to(ROOT), link


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_says_what_it_shows(page):
    assert not re.findall(r"!\[\s*\]", PAGES[page].read_text())
