"""Chooses the directory for saved prompts of unloaded models: the user's, the router's or the worker's own.

Only this user can read the prompts there. The worker's engine defines the file format.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .errors import ConfigError
from .private_directory import PrivateDirectory

DIRECTORY_ENV = "LLAMA_CORRAL_PROMPTS"
"""Passes the path of the router's directory to its workers."""
_PREFIX = "corral-prompts-"
_ROOMY = Path("/var/tmp")
"""Preferred for large files on Unix, because /tmp is often in memory."""


def prompts_directory(given: str, environ: Mapping[str, str]) -> PrivateDirectory:
    """Return the directory to use. Only a directory that the user names (`given`) is created here already.

    Raise ConfigError if it cannot be created.
    """
    if given:
        try:
            Path(given).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            is_file = isinstance(error, FileExistsError | NotADirectoryError)
            why = "this is a file, or below one" if is_file else error.strerror
            raise ConfigError(f"--cache-disk-dir {given}: {why}") from None
        return PrivateDirectory(_PREFIX, given)
    return PrivateDirectory(_PREFIX, environ.get(DIRECTORY_ENV, ""), parent=_parent(environ))


def _parent(environ: Mapping[str, str]) -> str:
    is_chosen = any(environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    if is_chosen or not os.access(_ROOMY, os.W_OK | os.X_OK):
        return tempfile.gettempdir()
    return str(_ROOMY)
