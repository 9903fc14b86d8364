"""Variables that a worker's libraries read while they are loaded: set before, by the router and by the worker itself.

Imports nothing that loads one of them.
"""

from __future__ import annotations

WORKER_ENVIRON = {
    "GOMP_SPINCOUNT": "20000",  # idle OpenMP threads of a busy machine sleep instead of burning a core
    "GGML_NO_BACKTRACE": "1",  # on an abort ggml would start a debugger, which outlives the worker
    "OPENBLAS_NUM_THREADS": "1",  # numpy's own threads are of no use to us, and a zygote must have none
}
"""Added for workers unless the user has set them."""
