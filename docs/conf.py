"""The documentation site; ``make docs`` builds it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

project = "airflow-dai-provider"
author = "The airflow-dai-provider authors"
copyright = author  # noqa: A001 - Sphinx's name for it
(release,) = re.findall(r'__version__ = "(.*)"', (ROOT / "airflow_dai_provider" / "__init__.py").read_text())

extensions = ["myst_parser", "autoapi.extension", "sphinx_copybutton"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"{project} {release}"
exclude_patterns = ["_build"]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
# A link to a page or a heading that does not exist is a warning, and make docs makes it an error.
myst_heading_anchors = 4

# The reference is read from the source, and nothing is imported: the site needs neither Airflow nor Google's libraries.
autoapi_dirs = [str(ROOT / "airflow_dai_provider")]
# Not public, so not read: what the classes of the reference call.
autoapi_ignore = [f"*/airflow_dai_provider/{layer}/*" for layer in ("cli", "ingest", "sweep", "tasks", "transport")]
suppress_warnings = ["autoapi.python_import_resolution"]
autoapi_generate_api_docs = False
autoapi_add_toctree_entry = False
autoapi_python_class_content = "class"
autoapi_options = ["members", "show-inheritance", "imported-members"]
