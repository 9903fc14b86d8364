"""The option table, part 1: options that print something and exit, and the log."""

from .option import OptionGroup, OptionReader, option
from .values import OffBelowZero, OnOffAuto, Switch


class ProgramOptions(OptionGroup):
    title = "Print and exit"

    usage: Switch = option(False, "-h --help --usage", "show this help and exit", reader=OptionReader.PROGRAM)
    version: Switch = option(False, "--version", "show version and build and exit", reader=OptionReader.PROGRAM)
    cache_list: Switch = option(
        False, "-cl --cache-list", "list the models in the Hugging Face cache and exit", reader=OptionReader.PROGRAM
    )
    completion_bash: Switch = option(
        False, "--completion-bash", "print a completion script for bash and exit", reader=OptionReader.PROGRAM
    )
    list_devices: Switch = option(
        False,
        "--list-devices",
        "list the devices for offloading and exit",
        reader=OptionReader.PROGRAM,
    )


class LogOptions(OptionGroup):
    title = "Log"

    log_disable: Switch = option(False, "--log-disable", "turn the log off", reader=OptionReader.BOTH)
    log_file: str = option(
        "",
        "--log-file",
        "also append the log to this file",
        env="LOG_FILE",
        older_env="$LLAMA_LOG_FILE",
        hint="FILE",
        reader=OptionReader.BOTH,
        per_model=True,
    )
    log_jsonl: Switch = option(
        False,
        "--log-jsonl",
        "log one JSON object per line to stdout, without colours",
        env="LOG_JSONL",
        reader=OptionReader.BOTH,
    )
    log_colors: OnOffAuto = option(
        "auto",
        "--log-colors",
        "colours in the log; auto: only on a terminal",
        env="LOG_COLORS",
        older_env="$LLAMA_LOG_COLORS",
        hint="on|off|auto",
        reader=OptionReader.BOTH,
    )
    log_verbosity: OffBelowZero = option(
        3,
        "-lv --verbosity --log-verbosity",
        "level of detail: 0 output only, 1 errors, 2 warnings, 3 information, 4 more information, 5 debug",
        env="LOG_VERBOSITY",
        older_env="$LLAMA_LOG_VERBOSITY",
        hint="N",
        reader=OptionReader.BOTH,
    )
    log_prefix: Switch = option(
        False,
        "--log-prefix",
        "start each line with its level and source",
        env="LOG_PREFIX",
        older_env="$LLAMA_LOG_PREFIX",
        reader=OptionReader.BOTH,
    )
    log_timestamps: Switch = option(
        True,
        "--log-timestamps",
        "start each line with the date and the time",
        env="LOG_TIMESTAMPS",
        older_env="$LLAMA_LOG_TIMESTAMPS",
        reader=OptionReader.BOTH,
    )
    log_prompts_dir: str = option(
        "",
        "--log-prompts-dir",
        "write every prompt to a file in this directory, for debugging",
        hint="DIR",
        unsupported="prompts are never written to disk",
    )
