"""What log output shows, to people at a terminal and to programs elsewhere."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from generator import Redactor
from generator.log_redaction import redacting
from service.logging import configure_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def fail_with(secret: str) -> None:
    """Log a failure in whose frame the secret is."""
    try:
        raise RuntimeError(f"a text of {len(secret)} letters is too short")
    except RuntimeError as error:
        structlog.get_logger().error("it_failed", exc_info=error, job="j-1")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_a_traceback_shows_no_values_of_variables(stream: io.StringIO) -> None:
    configure_logging(stream)
    fail_with("hr_of-nobody's-business")
    said = stream.getvalue()
    assert "it_failed" in said
    assert "RuntimeError: a text of 23 letters is too short" in said
    assert "nobody" not in said


def test_log_output_to_a_file_is_one_json_object_per_line() -> None:
    stream = io.StringIO()
    configure_logging(stream)
    fail_with("x")
    structlog.get_logger().info("it_went_on", job="j-1")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["event"], first["level"], first["job"]) == ("it_failed", "error", "j-1")
    assert (second["event"], second["level"]) == ("it_went_on", "info")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_no_secret_is_written_in_facts_tracebacks_or_what_libraries_say(
    stream: io.StringIO,
) -> None:
    secret = 'correct "horse" battery'
    configure_logging(stream, Redactor([secret]))
    try:
        raise RuntimeError(f"no {secret}")
    except RuntimeError as error:
        structlog.get_logger().error("it_failed", exc_info=error, said=[secret], why=f"{secret!r}")
        logging.getLogger("elsewhere").warning("%s", secret, exc_info=error)
    said = stream.getvalue()
    assert said.count("[redacted]") == 5
    assert "horse" not in said


def test_in_a_build_its_own_secrets_are_left_out_too() -> None:
    stream = io.StringIO()
    configure_logging(stream, Redactor())
    log = structlog.get_logger()
    with redacting(lambda: Redactor(["correct-horse"])):
        log.info("it_went_on", said="correct-horse")
    log.info("it_went_on", said="correct-horse")
    within, outside = map(json.loads, stream.getvalue().splitlines())
    assert (within["said"], outside["said"]) == ("[redacted]", "correct-horse")
