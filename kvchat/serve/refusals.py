"""What a request is refused with: HTTP status and OpenAI's form of an error."""

from typing import Any

from kvchat.errors import KvchatError

# Status and type by the code of a KvchatError.
KNOWN = {
    "usage": (400, "invalid_request_error"),
    "input": (400, "invalid_request_error"),
    "too_long": (400, "invalid_request_error"),
    "memory": (503, "server_error"),
}
CODES = {"too_long": "context_length_exceeded", "memory": "insufficient_memory"}
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
OURS = (500, "server_error")


class Refusal(Exception):
    """A request that is not answered, and why. `after`: seconds until it may be worth a try."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.after = after
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.kind = TYPES.get(status, kind)

    @classmethod
    def of(cls, error: BaseException) -> "Refusal":
        """The refusal that an error comes to; of one that is our fault it says no more than its
        kind."""
        if isinstance(error, Refusal):
            return error
        if not isinstance(error, KvchatError):
            return cls(500, f"the server failed ({type(error).__name__}); its log has more")
        status, kind = KNOWN.get(error.code, OURS)
        found = cls(status, error.message, code=CODES.get(error.code, error.code))
        found.kind = kind
        if status == 503:
            found.after = 5
        return found

    @property
    def headers(self) -> dict[str, str]:
        """Beside the body. What is left of a body that is not read is never read: the connection
        ends."""
        found = {} if self.after is None else {"retry-after": str(self.after)}
        if self.status in (408, 413):
            found["connection"] = "close"
        return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    def body(self) -> dict[str, Any]:
        """OpenAI's form."""
        about = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": about}
