"""Where prompts are kept while their model is away: a directory of the user's, the router's, or the worker's own.

Prompts can be read there by this user only, who has them anyway. The worker's engine has its format.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .errors import ConfigError
from .private_directory import PrivateDirectory

DIRECTORY_ENV = "LLAMA_CORRAL_PROMPTS"
"""Names the router's directory to its workers."""
_PREFIX = "corral-prompts-"
_ROOMY = Path("/var/tmp")
"""Where large files belong on Unix: the usual place for temporary ones is often memory."""


def prompts_directory(given: str, environ: Mapping[str, str]) -> PrivateDirectory:
    """Nothing is made yet, but for a directory that the user names. Raises ConfigError."""
    if given:
        try:
            Path(given).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--cache-disk-dir: {given}: {error.strerror}") from None
        return PrivateDirectory(_PREFIX, given)
    return PrivateDirectory(_PREFIX, environ.get(DIRECTORY_ENV, ""), parent=_parent(environ))


def _parent(environ: Mapping[str, str]) -> str:
    is_chosen = any(environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    if is_chosen or not os.access(_ROOMY, os.W_OK | os.X_OK):
        return tempfile.gettempdir()
    return str(_ROOMY)
