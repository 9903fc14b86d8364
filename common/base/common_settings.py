"""The options that the `common` package reads, as one small protocol per use.

The option table's `Settings` class has all these groups and attributes. Units, ranges and meanings are those of the
options with the same names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

if TYPE_CHECKING:
    from pydantic import SecretStr


class LogOptions(Protocol):
    @property
    def log_colors(self) -> Literal["on", "off", "auto"]: ...

    @property
    def log_disable(self) -> bool: ...

    @property
    def log_file(self) -> str: ...

    @property
    def log_jsonl(self) -> bool: ...

    @property
    def log_prefix(self) -> bool: ...

    @property
    def log_timestamps(self) -> bool: ...

    @property
    def log_verbosity(self) -> int: ...


class ModelOptions(Protocol):
    @property
    def hf_file(self) -> str: ...

    @property
    def hf_repo(self) -> str: ...

    @property
    def hf_token(self) -> SecretStr: ...

    @property
    def model(self) -> str: ...

    @property
    def model_url(self) -> str: ...

    @property
    def offline(self) -> bool: ...


class ProjectorOptions(Protocol):
    @property
    def mmproj(self) -> str: ...

    @property
    def mmproj_auto(self) -> bool: ...

    @property
    def mmproj_url(self) -> str: ...


class DraftOptions(Protocol):
    @property
    def hf_repo_draft(self) -> str: ...

    @property
    def model_draft(self) -> str: ...

    @property
    def spec_type(self) -> tuple[str, ...]: ...


class HttpOptions(Protocol):
    @property
    def allowed_hosts(self) -> tuple[str, ...]: ...

    @property
    def api_key(self) -> tuple[SecretStr, ...]: ...

    @property
    def api_key_file(self) -> str: ...

    @property
    def api_prefix(self) -> str: ...

    @property
    def cors_credentials(self) -> bool: ...

    @property
    def cors_headers(self) -> str: ...

    @property
    def cors_methods(self) -> str: ...

    @property
    def cors_origins(self) -> str: ...

    @property
    def host(self) -> tuple[str, ...]: ...

    @property
    def path(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def reuse_port(self) -> bool: ...

    @property
    def ssl_cert_file(self) -> str: ...

    @property
    def ssl_key_file(self) -> str: ...

    @property
    def timeout(self) -> int: ...

    @property
    def ui(self) -> bool: ...

    @property
    def ui_config(self) -> str: ...

    @property
    def ui_config_file(self) -> str: ...

    @property
    def ui_mcp_proxy(self) -> bool: ...


class ToolOptions(Protocol):
    @property
    def mcp_servers_config(self) -> str: ...

    @property
    def mcp_servers_json(self) -> str: ...

    @property
    def tools(self) -> tuple[str, ...]: ...

    @property
    def tools_runtime(self) -> str: ...


class LimitOptions(Protocol):
    @property
    def max_body(self) -> int: ...

    @property
    def tools_root(self) -> str: ...


class LogSettings(Protocol):
    @property
    def log(self) -> LogOptions: ...


class ModelSettings(Protocol):
    """Which files the model has, and where they come from."""

    @property
    def main_model(self) -> ModelOptions: ...

    @property
    def media(self) -> ProjectorOptions: ...

    @property
    def drafts(self) -> DraftOptions: ...


class ListenSettings(Protocol):
    @property
    def http(self) -> HttpOptions: ...


class ServerSettings(ListenSettings, Protocol):
    """HTTP, access control and tools."""

    @property
    def endpoints(self) -> ToolOptions: ...

    @property
    def corral(self) -> LimitOptions: ...

    @property
    def options_set(self) -> Set[str]:
        """Names of the options that the user set, from any source."""
        ...

    def with_options(self, values: Mapping[str, Any], *, unset: Iterable[str] = ()) -> Self:
        """Return a copy of the settings with these values of options."""
        ...
