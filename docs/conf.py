"""The site: python -m sphinx -W --keep-going -n docs build/site."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import refloss

smartquotes = False
project = "refloss"
author = "The refloss authors"
copyright = author  # noqa: A001
version = release = refloss.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "docs._ext.reference",
    "docs._ext.links",
]
exclude_patterns = ["_ext"]
default_role = "code"

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4

mathjax3_config = {"chtml": {"scale": 0.88}}  # as large as the text beside it

autodoc_typehints = "none"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = "refloss"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
