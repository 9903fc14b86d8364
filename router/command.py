"""The command `llama-corral`: read the options, then print a text, become the worker of one model, or run the router.

`cli` runs it. Each user error ends here as one line on stderr and exit code 1. Modules that only one of these tasks
needs are imported there, so that serving one model starts fast.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from llama_corral.common.base import logs
from llama_corral.common.base.errors import ConfigError, ModelFilesError
from llama_corral.common.base.version import BUILD_INFO, VERSION
from llama_corral.presets import merge
from llama_corral.presets.layer_source import merged
from llama_corral.presets.options.settings import Settings
from llama_corral.presets.process_sources import file_notices, process_sources

from .process.spawn import WORKER_COMMAND
from .process.worker_process import worker_environ
from .process.zygote_start import end_early

log = logging.getLogger("corral.router")


def main() -> NoReturn:
    try:
        code = run(sys.argv[1:], os.environ)
    except (ConfigError, ModelFilesError) as error:
        print(f"llama-corral: {error}", file=sys.stderr)
        code = 1
    except BrokenPipeError:  # `llama-corral --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    command_line, *lower = process_sources(argv, environ)
    settings = merge.resolve_sources([command_line, *lower])
    if text := _text_to_print(settings, environ):
        print(text, flush=True)  # a closed pipe must be noticed here, not when the interpreter exits
        return 0
    if settings.program.list_devices:
        return become_worker(argv, environ)
    logs.set_up(settings)
    wanted, settings = settings, _with_preset_file(settings, environ)
    if not settings.is_router:
        return become_worker(argv, environ)
    for line in file_notices(lower):
        log.info("%s", line)
    for line in (*merge.overridden(command_line.layer, merged(lower)), *merge.unused_option_notices(settings)):
        log.warning("%s", line)
    from .service import run_router  # imported late: it imports the whole router

    return run_router(
        settings, command_line.layer, environ, is_downloaded=settings.main_model.hf_repo != wanted.main_model.hf_repo
    )


def _text_to_print(settings: Settings, environ: Mapping[str, str]) -> str | None:
    if settings.program.usage or settings.program.completion_bash:
        from llama_corral.presets.options.help import bash_completion, help_text

        return help_text() if settings.program.usage else bash_completion()
    if settings.program.version:
        return f"version: llama-corral {VERSION} ({BUILD_INFO})"
    if settings.program.cache_list:
        from llama_corral.common.hub.resolve import list_cached

        cached = list_cached(environ)
        lines = [f"{number:4d}. {name}" for number, name in enumerate(cached, start=1)]
        return "\n".join([f"number of models in cache: {len(cached)}", *lines])
    return None


def _with_preset_file(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """Set `--models-preset` for `--demo`, and for a repository that contains presets instead of a model."""
    if settings.main_model.hf_repo and not settings.main_model.model:
        from llama_corral.common.hub.resolve import remote_preset

        if path := remote_preset(settings, environ):
            log.warning(
                "using the presets of the repository %s: they are as trustworthy as its author",
                settings.main_model.hf_repo,
            )
            return settings.with_options({"hf_repo": "", "hf_file": "", "models_preset": str(path)})
    if settings.corral.demo and settings.is_router and not settings.router.models_preset:
        from llama_corral.presets.sources import demo_presets_path

        return settings.with_options({"models_preset": str(demo_presets_path())})
    return settings


def become_worker(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Replace this process by the worker of its one model, on the same address. One model needs no router."""
    end_early()
    command = [*WORKER_COMMAND, *argv]
    environment = worker_environ(dict(environ))
    if os.name == "posix":
        os.execve(command[0], command, environment)
    return subprocess.call(command, env=environment)
