"""Who asks: API keys name tenants; without any configured, the client's own provider key does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from trimtab.config import KeyConfig, hash_key
from trimtab.errors import Forbidden, Unauthenticated
from trimtab.types import Scope

LOCAL_TENANT = "local"  # no key was sent and none is required
_MEMO_LIMIT = 10_000


class Access:
    """Names the tenant of a request. Immutable but for its memo of passed-through keys."""

    def __init__(self, keys: Mapping[str, KeyConfig]) -> None:
        self._by_hash = {key.hash: key for key in keys.values()}
        self._seen: dict[str, str] = {}

    @property
    def required(self) -> bool:
        """Whether a key of Trimtab's is required."""
        return bool(self._by_hash)

    def tenant(self, secret: str) -> str:
        """The tenant that a secret names. Raises Unauthenticated.

        Without configured keys every secret is a tenant of its own (by its hash), so that two holders of provider keys
        never share an answer.
        """
        if self._by_hash:
            return self._known(secret).tenant
        if not secret:
            return LOCAL_TENANT
        tenant = self._seen.get(secret)
        if tenant is None:
            if len(self._seen) >= _MEMO_LIMIT:
                self._seen.clear()
            tenant = self._seen[secret] = "key-" + hashlib.sha256(secret.encode()).hexdigest()[:16]
        return tenant

    def passed(self, secret: str) -> str:
        """The secret that may go upstream: the client's own provider key, never a key of Trimtab's."""
        return "" if self._by_hash else secret

    def allow(self, secret: str, scope: Scope) -> None:
        """Raises Forbidden when the key may not use the route, or not for this purpose."""
        if self._by_hash:
            key, route = self._known(secret), scope.route
            if scope.purpose and not key.evals:
                raise Forbidden(
                    "this key's requests are on its tenant's bill; `evals = true` in its table lets them be evals",
                    param="x-trimtab-purpose",
                )
            if key.routes and route not in key.routes:
                raise Forbidden(
                    f"this key may not use the route {route!r}; it may use: {', '.join(key.routes)}",
                    param="x-trimtab-route",
                )

    def _known(self, secret: str) -> KeyConfig:
        if not secret:
            raise Unauthenticated(
                "no API key was sent; send a Trimtab key as 'Authorization: Bearer ...' or 'x-api-key'"
            )
        key = self._by_hash.get(hash_key(secret))
        if key is None:
            raise Unauthenticated("the API key is not known here; `trimtab keys new` makes one")
        return key
