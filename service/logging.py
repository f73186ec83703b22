"""Log output: constant event names, facts as fields; never goals, payloads or keys."""

import logging
import sys
from typing import TextIO

import structlog


def configure_logging(stream: TextIO = sys.stderr) -> None:
    """Send log output to `stream`: for people at a terminal, as JSON lines elsewhere."""
    for_people = stream.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(
                # Its usual tracebacks show local variables, and so goals and keys.
                [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
                if for_people
                else [
                    structlog.processors.format_exc_info,
                    structlog.processors.JSONRenderer(default=str),
                ]
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(stream=stream, level=logging.WARNING, force=True)
