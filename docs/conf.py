"""Configuration of the documentation: `make docs` builds it, and a warning is an error."""

import warnings

from docutils import nodes
from latex2mathml.converter import convert

import hankelred

project = "hankelred"
author = "The hankelred authors"
copyright = "2026, The hankelred authors"
version = release = hankelred.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
]
html_math_renderer = "mathml"  # see setup
default_role = "autolink"  # a name in single backticks is a link where there is a page for it
exclude_patterns = ["_build", "gallery"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = "hankelred"

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "unsrt"
bibtex_reference_style = "author_year"

# Scripts of the gallery are run at every build, which fails with them; tests run them too.
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "nested_sections": False,
    "subsection_order": ["gallery/models", "gallery/training"],
    "abort_on_example_error": True,
    "show_signature": False,
    "write_computation_times": False,
}

# Lightning calls something of torch by its old name; what it says of it would stand in the page, with a path.
warnings.filterwarnings("ignore", ".*LeafSpec")

# The API pages follow `__all__`: whatever a public module lists there gets a page, or without it, what it defines.
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"  # numpydoc states types with shapes and units
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False


def setup(app):
    """Write formulas as MathML, which browsers show by themselves: no script, and nothing from another server."""
    app.add_html_math_renderer("mathml", (formula, None), (displayed, None))


def formula(translator, node):
    """Write a formula within a line."""
    translator.body.append(convert(node.astext(), display="inline"))
    raise nodes.SkipNode


def displayed(translator, node):
    """Write a formula on lines of its own, which scrolls where a screen is too narrow for it."""
    translator.body.append(translator.starttag(node, "div", CLASS="math", style="overflow-x: auto; padding: 0.3em 0"))
    translator.body.append(convert(node.astext(), display="block") + "</div>\n")
    raise nodes.SkipNode
