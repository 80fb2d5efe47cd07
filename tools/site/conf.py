"""Settings of the site as `make docs` builds it with Sphinx and myst-nb. The pages lie beside a copy of this file."""

import json
import os
from pathlib import Path

HERE = Path(__file__).parent
FACTS = json.loads((HERE / "facts.json").read_text())  # written by build.py: title, version, author

project = FACTS["title"]
author = FACTS["author"]
release = version = FACTS["version"]
copyright = author
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinxcontrib.katex",
]
root_doc = "index"
exclude_patterns = ["runs", "**/runs", "**/.ipynb_checkpoints"]
suppress_warnings = [
    "myst.header",  # chapters go from the title to the section, recipes may skip a level
    "mystnb.unknown_mime_type",
]

# Notebooks hold their outputs: nothing is executed.
nb_execution_mode = "off"
nb_merge_streams = True
nb_number_source_lines = False
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "attrs_inline"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

# The reference: every public name with its docstring.
autodoc_typehints = "none"  # docstrings give shapes and units
autodoc_default_options = {"members": True, "inherited-members": False, "show-inheritance": False}
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
viewcode_line_numbers = True

# Formulas are set while the site is built where node can be had, and in the browser otherwise.
katex_prerender = bool(FACTS["node"])
katex_css_path = "katex/katex.min.css"

html_theme = "furo"
html_title = FACTS["title"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = []
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "navigation_with_keys": True,
    "top_of_page_buttons": [],
    "light_css_variables": {"color-brand-primary": "#1a5fb4", "color-brand-content": "#1a5fb4"},
    "dark_css_variables": {"color-brand-primary": "#8ab4f8", "color-brand-content": "#8ab4f8"},
}
pygments_style = "friendly"
pygments_dark_style = "native"
os.environ.setdefault("TQDM_DISABLE", "1")
