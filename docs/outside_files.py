"""A hook of mkdocs for links from docs/ to other files of the repository.

Pages of the repository that belong to the documentation, and the pictures in them, become part of the site. Other files
are linked in the repository, if its address is known (REPOSITORY_URL); else their names are printed without a link.
"""

import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("benchmarks/REPORT.md", "CHANGELOG.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md", "TESTING.md")
LINK = re.compile(r"(!?)\[([^\]]*)\]\((\.\./[^)\s#]+)(#[^)\s]*)?\)")


def on_files(files, config):
    """Add the pages, and the pictures beside them."""
    for path in (*PAGES, *(f"benchmarks/plots/{plot.name}" for plot in (ROOT / "benchmarks/plots").glob("*.png"))):
        if (ROOT / path).is_file():
            files.append(File.generated(config, f"repository/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point links that leave docs/ to the pages of the site, or to the repository."""
    outside = page.file.src_uri.startswith("repository/")

    def replaced(match):
        picture, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        path = str(PurePosixPath(target).relative_to("..")).rstrip("/")
        if files.get_file_from_path(f"repository/{path}"):
            return f"{picture}[{text}](repository/{path}{anchor})"
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path})" if config.repo_url else text

    return _links_of_repository(markdown, page, config, files) if outside else LINK.sub(replaced, markdown)


def _links_of_repository(markdown, page, config, files):
    """The links of a page at the root of the repository or in one of its folders."""
    folder = PurePosixPath(page.file.src_uri).parent
    up = "../" * len(folder.parts)

    def replaced(match):
        picture, text, target = match[1], match[2], match[3]
        if re.match(r"\w+:", target) or target.startswith("#"):
            return match[0]
        path = str((folder / target.split("#")[0]).relative_to("repository"))
        anchor = f"#{target.partition('#')[2]}" if "#" in target else ""
        if path.startswith("docs/") and files.get_file_from_path(path.removeprefix("docs/")):
            return f"{picture}[{text}]({up}{path.removeprefix('docs/')}{anchor})"
        if files.get_file_from_path(f"repository/{path}"):
            return match[0]
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path})" if config.repo_url else text

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", replaced, markdown)
