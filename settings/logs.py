"""Logs of controller and agent: one JSON object a line, libraries' own lines among them."""

import logging
import sys
from typing import Any

import structlog


def configure(level: str) -> None:
    """Write what is at least of this level (`debug`, `info`, `warning`, `error`) to stdout."""
    number = logging.getLevelNamesMapping()[level.upper()]
    common: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(number),
        processors=[*common, structlog.processors.JSONRenderer()],
    )
    lines = logging.StreamHandler(sys.stdout)
    lines.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=common,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    # Other people's libraries only where something is wrong; `openflow` is ours.
    logging.basicConfig(handlers=[lines], level=logging.WARNING, force=True)
    logging.getLogger("openflow").setLevel(number)
