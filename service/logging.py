"""Log output: constant event names, facts as fields; never goals, payloads or keys.

Whatever is written goes through a redactor as a whole: also tracebacks, and what libraries say.
"""

import logging
import sys
from typing import Any, TextIO

import structlog

from generator import KEYS_ONLY, Redactor, current_redactor


class _Redacted(logging.Formatter):
    """Formats what comes from elsewhere than structlog."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__(logging.BASIC_FORMAT)
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        return (current_redactor() or self._redactor).text(super().format(record))


def configure_logging(stream: TextIO = sys.stderr, redactor: Redactor = KEYS_ONLY) -> None:
    """Send log output to `stream`: for people at a terminal, as JSON lines elsewhere.

    In a build its own redactor is used, which knows what `redactor` does.
    """
    for_people = stream.isatty()

    def redacted(_: object, __: str, line: Any) -> str:
        return (current_redactor() or redactor).text(line)

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
            redacted,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(stream=stream, level=logging.WARNING, force=True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Redacted(redactor))
