"""How Sphinx builds the site: `bash docs/build.sh`. The pages are plain Markdown, readable where they lie too."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, NumpyDocstring

import hpcdeq

project = "hpcdeq"
author = "the hpcdeq authors"
version = release = hpcdeq.__version__
root_doc = "docs/index"
# The source folder is the repository, so that links between pages are the same here and in the repository.
include_patterns = ["docs/**", "benchmarks/README.md", "hpcdeq/weights/README.md", "CHANGELOG.md"]
exclude_patterns = [".*", "build", "dist", "hpcdeq-demo", "tests", "docs/notebooks/*.ipynb"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
highlight_language = "none"
# Of a name that two modules export either will do.
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_title = f"hpcdeq {release}"
html_math_renderer = "mathml"
html_show_sphinx = False

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": False}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
default_role = "py:obj"
python_maximum_signature_line_length = 88


def _mathml(text: str, *, block: bool) -> str:
    """Return LaTeX as MathML, which browsers show by themselves: the site needs nothing from the internet."""
    try:
        return str(tex2mathml(text, as_block=block))
    except MathError as error:
        raise ValueError(f"this LaTeX cannot be shown: {text!r}: {error}") from error


def _visit_math(writer: Any, node: nodes.math) -> None:
    writer.body.append(_mathml(node.astext(), block=False))
    raise nodes.SkipNode


def _visit_math_block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="equation">{_mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def _read_numpydoc(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Turn a numpydoc docstring into reStructuredText.

    Not by the extension napoleon itself: it takes what stands before a colon in the docstring of an attribute for a type.
    """
    for i, line in enumerate(lines):  # |S| is a set of atoms, and not a substitution
        parts = re.split(r"(``.*?``)", line)
        lines[i] = "".join(part if part.startswith("``") else part.replace("|", r"\|") for part in parts)
    if what not in ("attribute", "data", "property"):
        lines[:] = str(
            NumpyDocstring(lines, Config(napoleon_use_rtype=False), app, what, name, obj, options)
        ).splitlines()


def setup(app: Sphinx) -> None:
    """Register what is not an option."""
    # A drawing on GitHub; here its text, under the table that says the same.
    app.add_lexer("mermaid", TextLexer)
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math_block, None))
    app.connect("autodoc-process-docstring", _read_numpydoc)
