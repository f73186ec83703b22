"""The secrets that this process knows itself: keys, and passwords in URLs."""

from collections.abc import Iterator
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import SecretStr

from generator import KEYS_ONLY, Redactor
from service.errors import SettingsInvalid
from service.settings import Settings


def redactor_of(settings: Settings) -> Redactor:
    """Takes out what the settings keep secret, and what looks like a key."""
    return Redactor(_secrets(settings))


def redactor_of_this_process() -> Redactor:
    """The same for the environment as it is, also where settings cannot be made of it."""
    try:
        return redactor_of(Settings.read())
    except SettingsInvalid:
        return KEYS_ONLY


def _secrets(settings: Settings) -> Iterator[str]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            yield value.get_secret_value()
        elif isinstance(value, str) and "://" in value:
            yield from _passwords(value)


def _passwords(url: str) -> Iterator[str]:
    parsed = urlsplit(url)
    # One that is the user's name as well (postgres:postgres) is no secret, and in many a text.
    if parsed.password and parsed.password != parsed.username:
        yield parsed.password
        yield unquote(parsed.password)
    yield from parse_qs(parsed.query).get("password", [])
