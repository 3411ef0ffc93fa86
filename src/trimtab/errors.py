"""Every error that Trimtab raises on purpose; each has one HTTP status and says which field, and the way out.

    TrimtabError                     status  retryable
    ├─ BadRequest                       400  no    the client's input; names the field
    │  ├─ MalformedJson                 400  no
    │  └─ Unsupported                   400  no    the target cannot do what was asked
    ├─ Unauthenticated                  401  no
    ├─ Forbidden                        403  no
    ├─ NotFound                         404  no
    │  └─ ModelNotFound                 404  no
    ├─ MethodNotAllowed                 405  no
    ├─ TooLarge                         413  no
    ├─ RateLimited                      429  yes
    ├─ Overloaded                       503  yes   the gateway or its engine cannot take more now
    ├─ UpstreamError                    502  -     whatever goes wrong behind us
    │  ├─ UpstreamUnreachable           502  yes   refused, reset, no route, TLS
    │  │  └─ UpstreamNotConnected       502  yes   nothing was sent
    │  ├─ UpstreamInvalid               502  yes   broke its protocol: bad JSON, wrong type, too large
    │  ├─ UpstreamCut                   502  no    a stream ended before its end mark
    │  ├─ UpstreamTimeout               504  no    one of our deadlines passed
    │  └─ UpstreamStatus       its own  varies     an HTTP error, passed on with its body
    ├─ StoreError                         -  yes   a store could not do what an operator asked
    └─ ConfigError                        -  no    every mistake in the configuration, at once

Errors are translated at boundaries only: the engines raise the `Upstream*` ones, `protocols` shape them for the client.
"""

from __future__ import annotations


class TrimtabError(Exception):
    """Base of all; `message` is for the client, `param` names the field at fault, `code` is stable for programs."""

    status = 500
    code = "internal_error"
    retryable = False

    def __init__(self, message: str, *, param: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class BadRequest(TrimtabError):
    """The client's input is wrong; `param` names the field."""

    status = 400
    code = "invalid_request"


class MalformedJson(BadRequest):
    """The body is not a JSON object."""

    code = "malformed_json"


class Unsupported(BadRequest):
    """The target cannot do what the request asks; nothing was dropped silently."""

    code = "unsupported"


class Unauthenticated(TrimtabError):
    """No key, or one that nobody configured."""

    status = 401
    code = "invalid_api_key"


class Forbidden(TrimtabError):
    """The key is known but may not do this."""

    status = 403
    code = "permission_denied"


class NotFound(TrimtabError):
    """No such resource."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """No engine serves the model that was asked for."""

    code = "model_not_found"


class MethodNotAllowed(TrimtabError):
    """The path exists, the method does not."""

    status = 405
    code = "method_not_allowed"


class TooLarge(TrimtabError):
    """The request body exceeds `server.max_request_bytes`."""

    status = 413
    code = "request_too_large"


class RateLimited(TrimtabError):
    """A limit or a budget of ours is used up."""

    status = 429
    code = "rate_limited"
    retryable = True


class Overloaded(TrimtabError):
    """The gateway or its engine cannot take more now."""

    status = 503
    code = "overloaded"
    retryable = True


class UpstreamError(TrimtabError):
    """Something went wrong behind us."""

    status = 502
    code = "upstream_error"


class UpstreamUnreachable(UpstreamError):
    """Refused, reset, unroutable, or its certificate was not trusted."""

    code = "upstream_unreachable"
    retryable = True


class UpstreamNotConnected(UpstreamUnreachable):
    """Nobody took the connection: nothing was sent."""


class UpstreamInvalid(UpstreamError):
    """It broke its protocol: invalid JSON, a wrong content type, a body beyond the limit."""

    code = "upstream_invalid_response"
    retryable = True


class UpstreamCut(UpstreamError):
    """A stream ended before its end mark."""

    code = "upstream_cut"


class UpstreamTimeout(UpstreamError):
    """A deadline of the attempt passed; not retried on the same target: the first call may still be billed."""

    status = 504
    code = "upstream_timeout"


class UpstreamStatus(UpstreamError):
    """The upstream answered with an HTTP error; `status`, `body` and `content_type` are its own."""

    code = "upstream_status"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        body: bytes = b"",
        content_type: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.status = status
        self.body = body
        self.content_type = content_type
        self.retryable = status in (408, 409, 429) or status >= 500


class StoreError(TrimtabError):
    """A store could not do what an operator asked of it; the message says what did happen."""

    code = "store_error"
    retryable = True


class ConfigError(TrimtabError):
    """The configuration has mistakes; `problems` lists all of them, each with its file, key and way out."""

    code = "config_error"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
