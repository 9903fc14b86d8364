"""What router and worker share and presets build on: errors, HTTP manners, the hub, tools. Imports nothing above it."""

import sys

# Every program imports this first, so that it ends here and not in a syntax error.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"llama-corral needs Python 3.11 or newer, and this is {sys.version.split()[0]}")
