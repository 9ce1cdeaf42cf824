"""A hook of mkdocs for links between docs/ and the other files of the repository.

Pages of the repository that belong to the documentation, and the plots in them, become part of the site, in the folder
`repository`. Links to other files lead to the repository, if its address is known (REPOSITORY_URL); else their words
are printed without a link.
"""

import posixpath
import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
ADDED = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "TESTING.md", "benchmarks/REPORT.md")
PLOTS = "benchmarks/plots/*.png"
FOLDER = "repository"

# Not the addresses of other hosts, and not places on the same page.
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files, config):
    """Add the pages of the repository and the plots."""
    for path in (*map(ROOT.joinpath, ADDED), *ROOT.glob(PLOTS)):
        uri = f"{FOLDER}/{path.relative_to(ROOT).as_posix()}"
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrite the links between files of the repository into links between pages of the site."""
    here = PurePosixPath(page.file.src_uri)
    in_repository = here.relative_to(FOLDER) if here.parts[0] == FOLDER else PurePosixPath("docs", here)

    def rewritten(match):
        mark, words, link, anchor = match[1], match[2], match[3], match[4] or ""
        path = posixpath.normpath(in_repository.parent / link)
        source = path.removeprefix("docs/") if path.startswith("docs/") else f"{FOLDER}/{path}"
        if files.get_file_from_path(source):
            return f"{mark}[{words}]({posixpath.relpath(source, here.parent)}{anchor})"
        if not (ROOT / path).exists():
            return match[0]  # no link at all, or one that mkdocs complains about
        return f"[{words}]({config.repo_url.rstrip('/')}/blob/main/{path})" if config.repo_url else words

    return LINK.sub(rewritten, markdown)
