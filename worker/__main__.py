"""`python -P -m llama_corral.worker OPTIONS…`: starts a worker, for the router or as a single-model server."""

from __future__ import annotations

import gc
import os
import sys

from llama_corral.common.base.library_environment import WORKER_ENVIRON
from llama_corral.common.base.user_signals import ignore_user_signals


def main() -> int:
    ignore_user_signals()
    for name, value in WORKER_ENVIRON.items():
        os.environ.setdefault(name, value)
    gc.disable()  # imports leave almost no garbage; `main` turns it on again
    from .main import run  # loads the libraries that read these variables

    return run(sys.argv[1:], os.environ)


if __name__ == "__main__":
    sys.exit(main())
