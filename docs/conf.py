"""How Sphinx builds the site: `sphinx-build -W -c docs . site`, from the root, so that every link is also GitHub's."""

import re
from pathlib import Path

project = "hsakd_jax"
copyright = "the authors of hsakd_jax, Apache-2.0"
root_doc = "README"
include_patterns = ["*.md", "docs/**", "results/*.md", "benchmarks/**.md"]
exclude_patterns = [".*", "**/.*"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_heading_anchors = 3
default_role = "code"  # for single backticks in docstrings
napoleon_use_ivar = True
napoleon_attr_annotations = False
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = "hsakd_jax"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False

# The order of the pages, which README.md does not contain on GitHub.
CONTENTS = """
```{toctree}
:hidden:
:caption: Start

Tutorial <docs/tutorial>
Questions <docs/faq>
The method <docs/method>
```

```{toctree}
:hidden:
:caption: How to

docs/recipes
docs/networks
docs/comparing
docs/own_data
docs/own_network
docs/own_objective
docs/imagenet
docs/several_machines
docs/resume
docs/profile
docs/pytorch_checkpoint
docs/deploy
```

```{toctree}
:hidden:
:caption: Reference

docs/methods
docs/commands
docs/config
docs/api
```

```{toctree}
:hidden:
:caption: Evidence

docs/differences
docs/promises
docs/speed
docs/results
CONTRIBUTING
CHANGELOG
```
"""


def setup(app):
    """Called by Sphinx."""

    def add_contents(app, docname, source):
        if docname == root_doc:
            # The site loads nothing from elsewhere, so it has no badges.
            source[0] = re.sub(r"^\[!\[.*\]\(https://.*\n", "", source[0], flags=re.MULTILINE) + CONTENTS

    def make_index(app, exception):
        if not exception and app.builder.format == "html":
            home = Path(app.outdir, f"{root_doc}.html")
            Path(app.outdir, "index.html").write_text(home.read_text())

    def skip(app, kind, name, member, skipped, options):
        # The docstring of a NamedTuple describes its fields.
        return skipped or str(getattr(member, "__doc__", "")).startswith("Alias for field number")

    app.connect("autodoc-skip-member", skip)
    app.connect("source-read", add_contents)
    app.connect("build-finished", make_index)
