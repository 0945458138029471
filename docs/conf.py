"""How the site is built: `make docs`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx

import acclimate

HERE = Path(__file__).parent

project = "Acclimate"
author = "The Acclimate developers"
version = release = acclimate.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx_copybutton"]
exclude_patterns = ["_build"]

myst_heading_anchors = 4  # links to headings work here as they do where the pages are read as files

autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"Acclimate {release}"
html_show_sphinx = False
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Write the page of the commands before anything is read."""
    app.connect("builder-inited", write_commands)


def write_commands(app: Sphinx) -> None:
    """The page of the commands, from what `--help` is made of."""
    command = [sys.executable, "-m", "typer", "acclimate.cli.app", "utils", "docs", "--name", "acclimate"]
    page = HERE / "reference" / "commands.md"
    text = subprocess.run([*command, "--title", "Commands"], capture_output=True, text=True, check=True).stdout
    if not page.exists() or page.read_text(encoding="utf-8") != text:  # or it would be read anew each time
        page.write_text(text, encoding="utf-8")
