"""The sources of a process's settings: command line, environment, `.env` file, files with secrets, system's files.

Each reads its values when it is created and keeps their origins. `merge` builds the settings from them.
"""

from __future__ import annotations

import io
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from llama_corral.common.base.errors import ConfigError
from llama_corral.common.base.user_files import read_limited, why_unreadable
from llama_corral.common.base.worker_reports import CONTROL_FD_ENV

from .ini import read_global
from .layer import ConfigValue, Layer, add, merge
from .layer_source import LayerSource, check
from .options.option import Option, Repeat
from .options.table import (
    FLAGS,
    OPTIONS,
    ROUTER_OWN,
    VARIABLES,
    OptionEntry,
    is_free_text,
    is_option,
    nearest,
    split_flag,
    value_count,
)
from .options.values import join_many

DOTENV = Path(".env")
CREDENTIALS_ENV = "CREDENTIALS_DIRECTORY"
"""systemd's variable with the directory of a service's credentials."""
SECRETS_ENV = "LLAMA_CORRAL_SECRETS_DIR"
SECRETS_DIRECTORY = "/run/secrets"
"""The directory where Docker, Podman and Kubernetes mount secrets."""

log = logging.getLogger("corral.presets")


class CommandLineSource(LayerSource):
    def __init__(self, argv: Sequence[str]) -> None:
        super().__init__(read_argv(argv))


class EnvironmentSource(LayerSource):
    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(read_environment(environ))


class FileSource(LayerSource):
    """Variables from files that a user may not expect to be read."""

    def __init__(self, layer: Layer, path: Path) -> None:
        super().__init__(layer)
        self.path = path


class DotenvSource(FileSource):
    """The `.env` file of the working directory."""

    def __init__(self, environ: Mapping[str, str], path: Path = DOTENV) -> None:
        super().__init__(_for_this_process(read_dotenv(path), environ), path)


class SecretsSource(FileSource):
    """The files of a directory of secrets. Each is named like a variable and contains its value."""

    def __init__(self, environ: Mapping[str, str], directory: Path) -> None:
        super().__init__(_for_this_process(read_secrets(directory), environ), directory)


class SystemConfigSource(LayerSource):
    """llama.cpp's configuration files of this machine and this user."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(read_system_config(environ))


def process_sources(argv: Sequence[str], environ: Mapping[str, str]) -> list[LayerSource]:
    """Return the sources of this process, highest precedence first. Raise ConfigError."""
    return [CommandLineSource(argv), *variable_sources(environ), SystemConfigSource(environ)]


def variable_sources(environ: Mapping[str, str]) -> list[LayerSource]:
    """Return the sources that name options by their variables, highest precedence first. Raise ConfigError."""
    secrets = [SecretsSource(environ, directory) for directory in _secrets_directories(environ)]
    return [EnvironmentSource(environ), DotenvSource(environ), *secrets]


def file_notices(sources: Iterable[LayerSource]) -> list[str]:
    """Return a log line for each `.env` file and directory of secrets that sets options. It has no values."""
    files = [source for source in sources if isinstance(source, FileSource) and source.layer]
    return [f"{source.path} sets {', '.join(sorted(source.layer))}" for source in files]


def _for_this_process(layer: Layer, environ: Mapping[str, str]) -> Layer:
    """Leave out the router's own options in its workers: with an API key they would refuse the router's requests."""
    if CONTROL_FD_ENV not in environ:
        return layer
    return {field: given for field, given in layer.items() if field not in ROUTER_OWN}


# -- command line ----------------------------------------------------------------------------------------------------


def read_argv(argv: Sequence[str]) -> dict[str, ConfigValue]:
    """Read the arguments after the program's name. Long options may use `_` for `-` and `=` before their value.

    Raise ConfigError.
    """
    layer: dict[str, ConfigValue] = {}
    arguments, before = iter(argv), ""
    for argument in arguments:
        flag, inline = split_flag(argument)
        if flag not in FLAGS:
            check(layer)  # a wrong value before it is the likely cause
            raise ConfigError(_unknown(flag, before))
        entry, before = FLAGS[flag].entry, flag
        count = value_count(entry)
        if inline is not None and count != 1:
            raise ConfigError(f"{flag}: a value after = is not allowed for this option")
        values = [inline] if inline is not None else list(itertools.islice(arguments, count))
        if len(values) < count:
            raise ConfigError(_missing(flag))
        add(layer, FLAGS[flag], _single(entry, " ".join(values)) if count else "true", flag, repeated=True)
        if inline is None and not is_free_text(entry) and (option := next(filter(is_option, values), "")):
            check(layer)  # for most options it is an invalid value
            raise ConfigError(f"{_missing(flag)}, found the option '{option}'")
    return layer


def _missing(flag: str) -> str:
    return f"{flag}: the value is missing: {flag} {getattr(FLAGS[flag].entry, 'hint', '')}"


def _single(entry: OptionEntry, text: str) -> str:
    """Encode the value so that a text that looks like a JSON list is still a single value."""
    return join_many([text]) if isinstance(entry, Option) and entry.repeat is Repeat.MANY else text


def _unknown(argument: str, before: str) -> str:
    """Describe an argument that is no option. `before`: the option before it, "" if there is none."""
    if argument.startswith("-"):
        return f"unknown option '{argument}'{nearest(argument, FLAGS)}"
    entry = FLAGS[before].entry if before else None
    if entry is not None and value_count(entry) == 0:
        off = getattr(entry, "negated", ())
        return f"{before}: unexpected value '{argument}': it takes no value" + (f" ({off[-1]}: off)" if off else "")
    if isinstance(entry, Option) and entry.secret:
        return f"unexpected argument after {before}"
    return f"unexpected argument '{argument}'" + (f" after {before}" if before else nearest("--" + argument, FLAGS))


# -- variables -------------------------------------------------------------------------------------------------------


def _read_variables(values: Mapping[str, ConfigValue]) -> dict[str, ConfigValue]:
    """Read LLAMA_ARG_* and a few others. LLAMA_ARG_NO_X means off for any value; other empty variables are ignored."""
    layer: dict[str, ConfigValue] = {}
    for name, spelling in VARIABLES.items():
        if name not in values:
            continue
        text, where, _ = values[name]
        if spelling.negated:
            add(layer, spelling, "true", where)
        elif text:
            add(layer, spelling, text, where)
    return layer


def read_environment(environ: Mapping[str, str]) -> dict[str, ConfigValue]:
    return _read_variables({name: ConfigValue(text, f"environment variable {name}") for name, text in environ.items()})


def read_dotenv(path: Path) -> dict[str, ConfigValue]:
    """Read a `.env` file. It may belong to another program: whatever is not a variable of ours is ignored."""
    try:
        text = read_limited(path).decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return {}
    except UnicodeDecodeError:
        log.warning("%s: ignored: not UTF-8 text", path)
        return {}
    except OSError as error:
        log.warning("%s: ignored: %s", path, why_unreadable(error))
        return {}
    from dotenv.parser import parse_stream

    values: dict[str, ConfigValue] = {}
    for binding in parse_stream(io.StringIO(text)):
        if binding.key is not None and binding.key in VARIABLES and binding.value is not None:
            line = binding.original.line + _leading_lines(binding.original.string)
            values[binding.key] = ConfigValue(binding.value, f"{path}:{line}: {binding.key}")
    return _read_variables(values)


def _leading_lines(text: str) -> int:
    """Return the number of empty lines before the binding, which the parser counts as a part of it."""
    return text[: len(text) - len(text.lstrip())].count("\n")


def _secrets_directories(environ: Mapping[str, str]) -> Iterable[Path]:
    """Return the directories of secrets, highest precedence first. Raise ConfigError."""
    if credentials := environ.get(CREDENTIALS_ENV):
        yield Path(credentials)
    if chosen := environ.get(SECRETS_ENV):
        if not Path(chosen).is_dir():
            raise ConfigError(f"environment variable {SECRETS_ENV}: {chosen}: no such directory")
        yield Path(chosen)
    else:
        yield Path(SECRETS_DIRECTORY)


def read_secrets(directory: Path) -> dict[str, ConfigValue]:
    """Read the files that are named like a variable, in any case; others are ignored. Raise ConfigError."""
    try:
        paths = sorted(path for path in directory.iterdir() if path.name.upper() in VARIABLES)
    except OSError:
        return {}
    values = {}
    for path in paths:
        try:
            text = read_limited(path, may_wait=True).decode().strip()
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: not UTF-8 text") from None
        except OSError as error:
            raise ConfigError(f"{path}: {why_unreadable(error)}") from None
        values[path.name.upper()] = ConfigValue(text, f"secrets file {path}", is_secret=True)
    return _read_variables(values)


# -- system configuration --------------------------------------------------------------------------------------------


def read_system_config(environ: Mapping[str, str]) -> Layer:
    """Read llama.cpp's configuration files of this machine and this user.

    All programs of llama.cpp share these files, so unsupported options are ignored with a warning.
    """
    home = environ.get("HOME")
    user = environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else None)
    directories = [Path("/etc"), *([Path(user)] if user else [])]
    files = [path for path in (directory / "llama.cpp" / "config.ini" for directory in directories) if path.is_file()]
    return merge(*(_supported_values(read_global(path)) for path in files))


def _supported_values(layer: Layer) -> Layer:
    refused = {field for field in layer.keys() & OPTIONS.keys() if OPTIONS[field].is_refused}
    for field in refused:
        log.warning("%s: ignored: %s", layer[field].where, OPTIONS[field].unsupported)
    return {field: given for field, given in layer.items() if field not in refused}
