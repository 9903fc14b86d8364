"""Environment variables that a worker's libraries read at load time; router and worker set them before that.

This module imports nothing that loads one of these libraries.
"""

from __future__ import annotations

WORKER_ENVIRON = {
    "GOMP_SPINCOUNT": "20000",  # idle OpenMP threads sleep instead of keeping a core busy
    "GGML_NO_BACKTRACE": "1",  # on an abort ggml would start a debugger, which outlives the worker
    "OPENBLAS_NUM_THREADS": "1",  # we do not need numpy's threads, and a zygote must have no threads
}
"""Variables to set for workers, unless the user has set them."""
