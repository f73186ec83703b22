"""Fixtures for the tests of the generator."""

from tests.e2b_server.fixture import e2b_server, e2b_session

__all__ = ["e2b_server", "e2b_session"]
