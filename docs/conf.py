"""How Sphinx builds the documents: `pip install '.[docs]' && sphinx-build docs site`."""

import re
from pathlib import Path

from sphinx.application import Sphinx

from spqt_ti import __version__

project = "spqt-ti"
author = "the spqt-ti contributors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"spqt-ti {version}"
html_copy_source = False

default_role = "code"  # docstrings write `name`
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

ROOT = Path(__file__).parents[1]


PAGES = {f"../{name.upper()}.md": f"{name}.md" for name in ("contributing", "security", "changelog")}


def turn_links(app: Sphinx, document: str, source: list[str]) -> None:
    """Links that lead out of docs/: to the page that includes the file; a folder has none, so its path is named."""

    def named(link: re.Match[str]) -> str:
        if link[2] in PAGES:
            return f"[{link[1]}]({PAGES[link[2]]})"
        folder = (ROOT / "docs" / link[2]).resolve()
        return f"{link[1]} (`{folder.relative_to(ROOT)}`)" if folder.is_dir() else link[0]

    source[0] = re.sub(r"(?<!!)\[([^]]+)\]\((\.\./[^)#]+)\)", named, source[0])


def setup(app: Sphinx) -> None:
    app.connect("source-read", turn_links)
