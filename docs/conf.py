"""Settings of the documentation site. ``docs/build.py`` builds it; nothing here needs a network."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from _site import docstrings, pictures  # noqa: E402

import gatelens  # noqa: E402

warnings.filterwarnings("ignore", category=DeprecationWarning)

project = "gatelens"
author = "The gatelens authors"
copyright = "the gatelens authors. MIT licence"
release = version = gatelens.__version__
GALLERIES = sorted(folder.name for folder in (HERE / "_scripts").iterdir())
RUN = os.environ.get("GATELENS_DOCS_RUN", "1") == "1"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = [
    "_site",
    "_scripts",
    "**/GALLERY_HEADER.rst",
    "**/sg_execution_times.rst",
    "sg_execution_times.rst",
]
exclude_patterns += [f"{name}/*.ipynb" for name in GALLERIES]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}

# Theme
html_theme = "furo"
html_title = "gatelens"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0a5d8f", "color-brand-content": "#0a5d8f"},
    "dark_css_variables": {"color-brand-primary": "#6cc0f0", "color-brand-content": "#6cc0f0"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"

# Pages
myst_enable_extensions = ["colon_fence", "attrs_block"]
myst_heading_anchors = 3
nb_execution_mode = "force" if RUN else "off"
nb_execution_timeout = 1800  # of a cell; one takes seconds, on a busy machine minutes
nb_execution_raise_on_error = True
nb_execution_excludepatterns = ["tutorials/*"]  # saved with their outputs, which their own test runs again
nb_execution_show_tb = True
nb_output_stderr = "remove"  # progress bars
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# API reference
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"ignore-module-all": True}
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

# Gallery
# the order and the scraper of the gallery are functions; `kind` in a docstring may be that of two classes
suppress_warnings = ["config.cache", "ref.python"]
if not RUN:
    suppress_warnings += ["myst-nb.lexer"]  # which language a page is in is known once it has run
sphinx_gallery_conf = {
    "examples_dirs": [f"_scripts/{name}" for name in GALLERIES],
    "gallery_dirs": GALLERIES,
    "filename_pattern": r"\.py$" if RUN else r"^$",
    "plot_gallery": RUN,
    "within_subsection_order": pictures.Order,
    "image_scrapers": (pictures.scrape,),
    "reset_modules": (pictures.reset,),
    "capture_repr": ("_repr_html_",),
    "ignore_repr_types": "",
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "min_reported_time": 3600,
    "remove_config_comments": True,
    "thumbnail_size": (640, 448),
    "default_thumb_file": str(HERE / "_static" / "not_run.png"),
    "abort_on_example_error": True,
    "reference_url": {"gatelens": None},
    "doc_module": ("gatelens",),
    "backreferences_dir": "backreferences",
    "nested_sections": False,
}


def setup(app: Any) -> None:
    docstrings.without_types()
    app.connect("autodoc-process-docstring", docstrings.one_name_each, priority=900)
