"""The HTTP API: commands go to the log, questions to the read model, followers to the hub."""

from service.api.app import MAX_BODY_BYTES, create_api
from service.api.parts import Parts

__all__ = ["MAX_BODY_BYTES", "Parts", "create_api"]
