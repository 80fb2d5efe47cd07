"""Settings of the site as Sphinx and myst-nb build it. The pages lie beside a copy of this file."""

import json
import sys
from pathlib import Path

FACTS = json.loads((Path(__file__).parent / "facts.json").read_text())  # written by build.py
sys.path.insert(0, FACTS["here"])

project = FACTS["title"]
author = FACTS["author"]
release = version = FACTS["version"]
copyright = author
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "numpydoc", "extension"]
root_doc = "index"
templates_path = [FACTS["here"] + "/templates"]
suppress_warnings = [
    "myst.header",  # recipes may skip a level
    "mystnb.unknown_mime_type",
]

# Notebooks hold their outputs: nothing is executed.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4

# The reference: every public name with its docstring.
default_role = "code"
autodoc_typehints = "none"  # docstrings give shapes and units
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
numpydoc_show_class_members = False
toc_object_entries_show_parents = "hide"
viewcode_line_numbers = True
viewcode_follow_imported_members = False

html_math_renderer = "here"
site_main_line = FACTS["main"]
site_titles = FACTS["titles"]
html_theme = "furo"
html_title = FACTS["title"]
html_static_path = ["_static"]
html_extra_path = [FACTS["extra"]]
html_css_files = ["site.css", *(["katex/katex.min.css"] if FACTS["katex"] else [])]
html_js_files = [("site.js", {"defer": "defer"})]
html_favicon = "_static/favicon.svg"
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
html_theme_options = {
    "navigation_with_keys": True,
    "top_of_page_buttons": [],
    "light_css_variables": {
        "color-brand-primary": "#0b5394",
        "color-brand-content": "#0b5394",
        "color-foreground-muted": "#55565a",
    },
    "dark_css_variables": {"color-brand-primary": "#8ab4f8", "color-brand-content": "#8ab4f8"},
}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
