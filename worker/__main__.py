"""`python -P -m llama_corral.worker OPTIONS…`: how the router spawns a worker, and what a single-model server is."""

from __future__ import annotations

import os
import sys

ENVIRON = {
    "GOMP_SPINCOUNT": "20000",  # else idle OpenMP threads burn a core that somebody else may need
    "GGML_NO_BACKTRACE": "1",  # on an abort ggml would start a debugger, which outlives the worker
    "OPENBLAS_NUM_THREADS": "1",  # numpy's own threads are of no use here
}
"""Read when the libraries are loaded: must stand before the import below. The router sets the same."""


def main() -> int:
    for name, value in ENVIRON.items():
        os.environ.setdefault(name, value)
    from .main import run

    return run(sys.argv[1:], os.environ)


if __name__ == "__main__":
    sys.exit(main())
