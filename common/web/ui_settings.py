"""The default settings of the web page (`--ui-config` or its file), which router and worker show in `/props`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..base.errors import ConfigError
from ..base.user_files import read_text_of

if TYPE_CHECKING:
    from ..base.common_settings import ListenSettings


def read_ui_settings(settings: ListenSettings) -> dict[str, Any]:
    """Return the JSON object of `--ui-config` or `--ui-config-file`; an empty one without them. Raise ConfigError."""
    option, text, path = "--ui-config", settings.http.ui_config, settings.http.ui_config_file
    if path:
        option, text = f"--ui-config-file {path}", read_text_of("--ui-config-file", path, may_wait=True)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{option}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{option}: not a JSON object")
    return value
