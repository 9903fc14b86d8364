"""A worker that only fetches its model's files: the router starts it for `POST /models`, and kills it to cancel.

What was fetched so far stays for the next try. Nothing of the model is loaded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from llama_corral.common.base.worker_reports import WorkerReport
from llama_corral.common.hub.download import DownloadProgress
from llama_corral.common.hub.resolve import resolve_files
from llama_corral.presets.options.settings import Settings

from .lifeline import Lifeline

log = logging.getLogger("corral.worker")

STOPPED = 1  # exit code


def download(settings: Settings, environ: Mapping[str, str], lifeline: Lifeline) -> int:
    """The exit code. Blocking; raises ModelFilesError."""
    lifeline.on_exit(lambda: os._exit(STOPPED))  # a transfer leaves nothing behind that the next one could not use

    def report(progress: DownloadProgress) -> None:
        payload = {"url": progress.url, "downloaded": progress.downloaded, "total": progress.total}
        lifeline.report(WorkerReport("downloading", payload))

    files = resolve_files(settings, environ, report)
    log.info("downloaded %s", files.model)
    return 0
