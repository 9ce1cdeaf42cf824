"""Code blocks of the documents in docs/."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def python_blocks(name):
    """The Python blocks of a document, in order."""
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)
