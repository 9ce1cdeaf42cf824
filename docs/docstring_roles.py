"""An extension of griffe for the API page: roles of Sphinx in docstrings become links, and examples become code."""

import re

from griffe import Extension

ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):`~?\.?([\w.]+)`")
# Names that the API page has.
LINKED = re.compile(
    r"gradcam_fast\.(explain|Explainer|Explanation|overlay|cam|targets|layers|features|metrics|packages|reference|probabilities)"
)


class DocstringRoles(Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj, **_):
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring):
    """The docstring with links in place of roles, and with the section of examples that griffe knows."""
    docstring = re.sub(r"^( *)Example:$", r"\1Examples:", docstring, flags=re.MULTILINE)
    return ROLE.sub(_link, docstring)


def _link(match):
    name = match[1]
    return f"[`{name}`][{name}]" if LINKED.fullmatch(name) else f"`{name}`"
