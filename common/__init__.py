"""Code that router, worker and presets share: errors, HTTP basics, the hub, tools. Imports none of these packages."""

import sys

# Every program imports this module first, so an old Python stops here and not with a syntax error.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"llama-corral needs Python 3.11 or newer, and this is {sys.version.split()[0]}")
