"""What MkDocs does not do by itself: formulas without a script, and docstrings' roles as Markdown.

``mkdocs.yml`` names this file twice: as a hook, for formulas, and as an extension of mkdocstrings.
"""

from __future__ import annotations

import html
import re
from typing import Any

import griffe
from latex2mathml.converter import convert


def on_page_content(content: str, **_: Any) -> str:
    """Turn the formulas that Markdown has marked into MathML, which browsers show without a script."""
    return re.sub(
        r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>',
        lambda found: convert(html.unescape(found[2]), display="inline" if found[1] == "span" else "block"),
        content,
        flags=re.DOTALL,
    )


class Roles(griffe.Extension):
    """Roles of reStructuredText in docstrings, as Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of anything that has one."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Mathematics in dollars, names in backticks, code blocks after one colon."""
    text = re.sub(r":math:`([^`]*)`", lambda found: f"${' '.join(found[1].split())}$", text)
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text)
    return re.sub(r"::$", ":", text.replace("``", "`"), flags=re.MULTILINE)
