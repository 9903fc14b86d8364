"""The vocabulary that router and worker share: options, preset files, model sources, errors and HTTP manners.

Everything a person can configure is spelled here and nowhere else. Imports nothing of router or worker.
"""

import sys

# Every program imports this first, so that it ends here and not in a syntax error.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"llama-corral needs Python 3.11 or newer, and this is {sys.version.split()[0]}")
