"""Sphinx's settings for the site; `tools/build_site.py` puts the lessons beside this file and calls Sphinx."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import latex2mathml.converter
from docutils import nodes

import qlab
from qlab.course.widgets import JS

HERE = Path(__file__).parent

project = "qlab"
author = "the qlab authors"
release = qlab.__version__
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.githubpages"]
exclude_patterns = ["README.md"]
nb_execution_mode = "off"  # the notebooks are executed
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # torch's link to torch's own pages
html_math_renderer = "mathml"

html_theme = "sphinx_book_theme"
html_title = "qlab: neural-network quantization"
html_theme_options = {
    "home_page_in_toc": True, "show_toc_level": 2, "use_download_button": False, "use_fullscreen_button": False,
    "search_bar_text": "Search the course", "navbar_persistent": [],
}  # fmt: skip
html_context = {"default_mode": "auto"}
html_favicon = "static/icon.svg"
html_static_path = ["static", str(JS)]  # the scripts of the panels are the course's own
html_extra_path = [str(HERE.parent / "extra")]
html_css_files = ["explorables.css", "site.css"]
html_js_files = [("live.js", {"type": "module"})]
html_copy_source = False
html_show_sourcelink = False


def as_mathml(self, node: nodes.Element) -> None:
    """A formula as MathML, which browsers set themselves: MathJax would be a megabyte of script."""
    if isinstance(node, nodes.math_block):  # one that is wider than a phone is moved under the finger
        formula = latex2mathml.converter.convert(node.astext(), display="block")
        self.body.append(f'<div class="qlab-formula" tabindex="0">{formula}</div>')
    else:
        self.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


ICONS = r"<script[^>]*fontawesome[^>]*></script>"  # 1.5 MB; site.css draws the few that are used
SEARCH = r'<script src="[^"]*(?:searchtools|language_data|searchindex)\.js[^>]*></script>'


def lighten(app, failed: Exception | None) -> None:
    """Leave out what the theme loads on each page and the page does not need."""
    for path in [] if failed else Path(app.outdir).rglob("*.html"):
        needless = ICONS if path.name == "search.html" else f"{ICONS}|{SEARCH}"
        path.write_text(re.sub(needless, "", path.read_text("utf-8")), "utf-8")
    for path in [*Path(app.outdir, "_static").rglob("*.map"), *Path(app.outdir, "_static").rglob("fontawesome*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def setup(app) -> None:
    app.connect("build-finished", lighten)
    app.add_html_math_renderer("mathml", (as_mathml, None), (as_mathml, None))
