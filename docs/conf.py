"""Builds the site, offline: `sphinx-build -W --keep-going -b html docs site`. `-D plot_gallery=0` leaves the tutorials out."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS / "extensions"), str(DOCS.parent)]

import mil_jax  # noqa: E402

project = "mil_jax"
author = "the mil_jax authors"
version = release = mil_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_gallery.gen_gallery",
    "api_pages",
    "mathml",
]
exclude_patterns = [
    "extensions",
    "tutorials/*.py",
    "auto_tutorials/*.ipynb",
    "auto_tutorials/*.py",
    "**sg_execution_times.rst",
]
suppress_warnings = ["config.cache"]  # sphinx-gallery's settings hold functions

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4

default_role = "code"
highlight_language = "text"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
add_module_names = False
toc_object_entries = False

html_theme = "pydata_sphinx_theme"
html_title = "mil_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "pygments_light_style": "tango",
    "pygments_dark_style": "monokai",
}
copyright = "the mil_jax authors, Apache-2.0"

sphinx_gallery_conf = {
    "examples_dirs": "tutorials",
    "gallery_dirs": "auto_tutorials",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"/(small_abmil|smooth_max_config)\.py",  # configs that the tutorials use
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "min_reported_time": 1,
}
