"""The keys under which secrets of projects are encrypted: AES-256-GCM, bound to what they are of.

The first key encrypts, all decrypt. A key is known by its id, which tells nothing else of it, so
that whoever lacks one can say which.
"""

import base64
import binascii
import hashlib
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple, Self

from service.errors import SecretKeyMissing, SecretUnreadable, SettingsInvalid

VARIABLE = "HEADRACE_SECRETS_KEY"
KEY_BYTES = 32
MOST_KEYS = 16
HOW_TO_MAKE = "openssl rand -base64 32"
_NONCE_BYTES = 12  # NIST SP 800-38D; random ones are good for 2^32 encryptions with a key
_TAG_BYTES = 16
OVERHEAD_BYTES = _NONCE_BYTES + _TAG_BYTES


class SecretRef(NamedTuple):
    """Whose secret it is, and its name."""

    tenant: str
    project: str
    name: str

    @property
    def bound(self) -> bytes:
        """What a ciphertext is good for alone; none of its parts holds a NUL."""
        return "\0".join(("headrace.project_secret", *self)).encode()


class Sealed(NamedTuple):
    """An encrypted value, and the id of its key."""

    key_id: str
    ciphertext: bytes


@dataclass(frozen=True, slots=True)
class SecretKey:
    """One key; `id` are the first 32 bits of its hash."""

    id: str
    material: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The key that `text` is: 32 bytes in base64, of either alphabet. Raises `ValueError`."""
        plain = text.strip().rstrip("=").replace("-", "+").replace("_", "/")
        try:
            material = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("it is not base64") from None  # which would tell of the key
        if len(material) != KEY_BYTES:
            raise ValueError(f"it has {len(material)} bytes, not {KEY_BYTES}")
        return cls(hashlib.sha256(b"headrace key id\0" + material).hexdigest()[:8], material)


def parse_keys(text: str) -> tuple[SecretKey, ...]:
    """The keys of a setting, separated by commas. Raises `ValueError` without their words."""
    parts = [part for part in text.split(",") if part.strip()]
    if not parts or len(parts) > MOST_KEYS:
        raise ValueError(f"it has {len(parts)} keys: give 1 to {MOST_KEYS}, with commas between")
    keys = []
    for number, part in enumerate(parts, 1):
        try:
            keys.append(SecretKey.parse(part))
        except ValueError as error:
            raise ValueError(
                f"key {number} of {len(parts)}: {error}; `{HOW_TO_MAKE}` makes one"
            ) from None
    return tuple(keys)


class SecretKeys:
    """Encrypts and decrypts with the keys that there are."""

    def __init__(self, given: Sequence[SecretKey] = (), *, file: Path | None = None) -> None:
        """`file` holds one more key, the last; made when something is to be encrypted without."""
        self._given = tuple(given)
        self._file = file

    @property
    def known(self) -> tuple[SecretKey, ...]:
        """All keys, the one that encrypts first. Raises `SettingsInvalid` for a damaged file."""
        return (*self._given, *self._in_file())

    def seal(self, ref: SecretRef, value: str) -> Sealed:
        """The value encrypted with the first key. Raises `SecretKeyMissing`."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # a tenth of a second

        key = self.first()
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(key.material).encrypt(nonce, value.encode(), ref.bound)
        return Sealed(key.id, nonce + sealed)

    def open(self, ref: SecretRef, sealed: Sealed) -> str:
        """The value. Raises `SecretUnreadable`: no such key, or it is another's, or damaged."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        known = {key.id: key for key in self.known}
        key = known.get(sealed.key_id)
        if key is None:
            raise SecretUnreadable(ref.name, ref.project, _lacks(sealed.key_id, known))
        nonce, text = sealed.ciphertext[:_NONCE_BYTES], sealed.ciphertext[_NONCE_BYTES:]
        try:
            return AESGCM(key.material).decrypt(nonce, text, ref.bound).decode()
        except (InvalidTag, ValueError) as error:
            raise SecretUnreadable(
                ref.name, ref.project, "its ciphertext is damaged, or another's: set it again"
            ) from error

    def first(self) -> SecretKey:
        """The key that encrypts; that of the file is made now. Raises `SecretKeyMissing`."""
        if not self.known and self._file is not None:
            _make_key(self._file)
        if not self.known:
            raise SecretKeyMissing(VARIABLE, HOW_TO_MAKE)
        return self.known[0]

    def _in_file(self) -> tuple[SecretKey, ...]:
        if self._file is None:
            return ()
        try:
            return (SecretKey.parse(self._file.read_text()),)
        except FileNotFoundError:
            return ()
        except (ValueError, OSError) as error:
            raise SettingsInvalid(
                f"{self._file} is no key: {error}; put it back from a backup"
            ) from error


def _make_key(path: Path) -> None:
    """A new key in a file of mode 600, unless another makes one just now."""
    key = base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()
    try:
        with NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.") as draft:
            draft.write(key + "\n")
            draft.flush()
            os.fsync(draft.fileno())  # before anything is encrypted with it
            with suppress(FileExistsError):
                os.link(draft.name, path)  # whole or not at all, and never over another
    except OSError as error:
        raise SettingsInvalid(f"{path} cannot be made: {error.strerror}") from error


def _lacks(key_id: str, known: dict[str, SecretKey]) -> str:
    here = f"{', '.join(known)} here" if known else "no key here"
    return (
        f"it was encrypted with key {key_id}, and there is {here}: add that key to {VARIABLE}, or "
        "set the secret again"
    )
