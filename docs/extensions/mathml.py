"""Formulas as MathML, which browsers draw themselves: nothing to load, nothing to install. docutils converts them from LaTeX."""

from __future__ import annotations

import html
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging


def visit_math(translator: Any, node: nodes.math) -> None:
    """A formula within a line."""
    translator.body.append(_mathml(node.astext(), node))
    raise nodes.SkipNode


def visit_displaymath(translator: Any, node: nodes.math_block) -> None:
    """A formula on lines of its own."""
    text = node.astext()
    if r"\\" in text and r"\begin" not in text:
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    translator.body.append(f'<div class="formula">{_mathml(text, node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def _mathml(text: str, node: nodes.Node, **options: Any) -> str:
    """A formula that cannot be converted is a warning with its place, and stays as it is."""
    try:
        return tex2mathml(text, **options)
    except MathError as error:
        logging.getLogger(__name__).warning("%s in: %s", error, text, location=node)
        return f"<code>{html.escape(text)}</code>"


def setup(app: Sphinx) -> dict[str, Any]:
    """Makes MathML the way that the HTML builders draw formulas."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    app.config.html_math_renderer_name = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
