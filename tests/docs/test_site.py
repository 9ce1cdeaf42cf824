"""The documentation's site builds without a warning, and loads nothing from other hosts."""

import re
import subprocess
import sys

import pytest
from support.documents import PAGES, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="the site needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_built_and_in_the_navigation(site):
    home = (site / "index.html").read_text()
    for page in PAGES:
        if page.startswith("docs/") and page != "docs/index.md":
            name = page.removeprefix("docs/").removesuffix(".md")
            assert (site / name / "index.html").is_file() and f'href="{name}/"' in home, page


def test_the_api_page_has_signatures_and_no_roles_of_sphinx(site):
    api = (site / "api" / "index.html").read_text()
    assert 'id="gradcam_fast.explain"' in api and 'id="gradcam_fast.targets.segmentation"' in api
    assert not re.search(r":(func|class|meth|mod):", api)


def test_pages_load_nothing_from_other_hosts(site):
    for path in site.rglob("*.html"):
        text = path.read_text()
        loaded = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?://[^"]+)"', text)
        assert not loaded, (path, loaded)
