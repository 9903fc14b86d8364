"""Environment variables that a worker's libraries read at load time; router and worker set them before that.

This module imports nothing that loads one of these libraries.
"""

from __future__ import annotations

from collections.abc import Mapping

WORKER_ENVIRON = {
    "GOMP_SPINCOUNT": "20000",  # idle OpenMP threads sleep instead of keeping a core busy
    "GGML_NO_BACKTRACE": "1",  # on an abort ggml would start a debugger, which outlives the worker
    "OPENBLAS_NUM_THREADS": "1",  # we do not need numpy's threads, and a zygote must have no threads
}
"""Variables to set for workers, unless the user has set them."""

ZYGOTE_ENVIRON = {
    "PYDANTIC_DISABLE_PLUGINS": "__all__",  # looking for plugins reads the metadata of all installed packages
}
"""Variables for the zygote's imports only. The workers that it forks get their whole environment from the router."""

OPTION_PREFIXES = ("LLAMA_ARG_", "LLAMA_API_KEY", "LLAMA_CORRAL_DEMO", "LLAMA_CORRAL_TOOLS", "AIP_", "HF_", "NOTIFY_")
"""Beginnings of the names of variables that no library reads while it is imported: options and secrets."""


def zygote_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which a zygote imports the libraries.

    It has no options and no secrets: a fork gets the worker's whole environment with its request.
    """
    kept = {name: value for name, value in environ.items() if not name.startswith(OPTION_PREFIXES)}
    return {**WORKER_ENVIRON, **ZYGOTE_ENVIRON, **kept}
