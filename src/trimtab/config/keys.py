"""API keys of Trimtab: made here, shown once, kept as a hash."""

from __future__ import annotations

KEY_PREFIX = "tt-"
_RANDOM_BYTES = 24  # 32 characters of url-safe base64


def new_key() -> str:
    """A fresh secret: "tt-" and 32 url-safe characters, 192 random bits."""
    import secrets

    return KEY_PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def hash_key(secret: str) -> str:
    """The form in which a key is stored and compared: "sha256:" and the hex digest.

    One fast hash without salt is right here: slow ones protect secrets that can be guessed, and a key of 192 random
    bits cannot be, while every request has to hash it.
    """
    from hashlib import sha256

    return "sha256:" + sha256(secret.encode()).hexdigest()
