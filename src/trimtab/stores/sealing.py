"""How captured bodies lie on disk: compressed, and encrypted with AES-256-GCM where a key is given.

Each is sealed on its own: 12 random bytes (the nonce), then the ciphertext with its tag; the request's id is
authenticated with it, so that no body can be put under another's name. Random nonces are safe for about 2^32 bodies of
one key (NIST SP 800-38D): make a new one before.
"""

from __future__ import annotations

import base64
import binascii
import os
import zlib
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from trimtab.errors import BadRequest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_HOW: Final = 'make one with: python3 -c "import os, base64; print(base64.b64encode(os.urandom(32)).decode())"'
NO_PACKAGE: Final = "encryption needs the package cryptography: pip install 'trimtab[encrypt]'"


def key_problem(text: str, variable: str) -> str:
    """Why a key (base64 in the variable so named) cannot be used, with the way out, or ""."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        return f"the environment variable {variable} is not base64; {_HOW}"
    if len(key) != _KEY_BYTES:
        return f"the key in {variable} has {len(key)} bytes, not {_KEY_BYTES}; {_HOW}"
    return "" if find_spec("cryptography") is not None else NO_PACKAGE


class Seal:
    """Seals and opens bodies. Without a key it compresses only."""

    def __init__(self, key: bytes = b"") -> None:
        self.key_id = sha256(b"trimtab capture key" + key).hexdigest()[:8] if key else ""
        self._cipher: AESGCM | None = None
        if key:
            try:
                from cryptography.hazmat.primitives.ciphers.aead import AESGCM
            except ImportError:
                raise BadRequest(NO_PACKAGE) from None
            self._cipher = AESGCM(key)

    @classmethod
    def of_text(cls, text: str, variable: str) -> Seal:
        """With the key that a variable holds as base64. Raises BadRequest for one that cannot be used."""
        if problem := key_problem(text, variable):
            raise BadRequest(problem, param=variable)
        return cls(base64.b64decode(text.strip()))

    def close(self, body: bytes, request_id: str) -> bytes:
        """What is stored for a body."""
        packed = zlib.compress(body)
        if self._cipher is None:
            return packed
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, packed, request_id.encode())

    def open(self, stored: bytes, request_id: str) -> bytes:
        """The body again. Raises BadRequest for what another key sealed, what was changed, or what is damaged."""
        packed = stored
        if self._cipher is not None:
            from cryptography.exceptions import InvalidTag

            nonce, sealed = stored[:_NONCE_BYTES], stored[_NONCE_BYTES:]
            try:
                packed = self._cipher.decrypt(nonce, sealed, request_id.encode())
            except (InvalidTag, ValueError):
                raise BadRequest(f"{request_id} cannot be opened: another key sealed it, or it was changed") from None
        try:
            return zlib.decompress(packed)
        except zlib.error as error:
            raise BadRequest(f"{request_id} is damaged: {error}") from None


class Keyring:
    """The keys that a reader has: what several keys sealed (one after the other) can be read at once."""

    def __init__(self, variables: Sequence[str], env: Mapping[str, str]) -> None:
        """`variables` name those of `env` that hold keys. Raises BadRequest for one that is not set or no key."""
        self._seals = {"": Seal()}
        for variable in variables:
            if not env.get(variable, "").strip():
                raise BadRequest(f"the environment variable {variable} is not set; it should hold the capture's key")
            seal = Seal.of_text(env[variable], variable)
            self._seals[seal.key_id] = seal

    def open(self, key_id: str, stored: bytes, request_id: str) -> bytes:
        """The body that was sealed. Raises BadRequest if its key is not here, or it was changed."""
        seal = self._seals.get(key_id)
        if seal is None:
            has = "the key given is another" if len(self._seals) > 1 else "none was given"
            raise BadRequest(
                f"captured requests are encrypted with the key {key_id}, and {has}; name the environment variable that "
                "holds it with --key-env"
            )
        return seal.open(stored, request_id)
