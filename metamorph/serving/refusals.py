"""What goes wrong with a request, in the shape of OpenAI's errors."""

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from metamorph.errors import one_line

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
GONE = 499  # as nginx counts clients that went away; nobody reads it
RETRY_SECONDS = 5
MISTAKE = "something went wrong here; the log has more under the request's id"


class Fault(BaseModel):
    """OpenAI's object of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is none."""

    error: Fault


class Refused(HTTPException):
    """A request that is not answered. `param` is the field that is at fault, if one is; `code` is
    short and for programs, the message is one sentence for people."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(status, one_line(message), headers)
        self.param = param if param is None else one_line(param)  # it may hold what a client sent
        self.code = code

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status_code >= 500 else "invalid_request_error"
        kind = TYPES.get(self.status_code, kind)
        fault = Fault(message=self.detail, type=kind, param=self.param, code=self.code)
        return ErrorBody(error=fault).model_dump()

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status_code, self.headers)


def invalid(param: str | None, message: str, code: str = "invalid_value") -> Refused:
    """A request that can never be answered as it is."""
    return Refused(400, message, param=param, code=code)


def busy(message: str) -> Refused:
    """Too much to do; the same request can be answered later."""
    headers = {"retry-after": str(RETRY_SECONDS)}
    return Refused(429, message, code="queue_full", headers=headers)


def unavailable(message: str, code: str) -> Refused:
    """The server stops or is broken; another one may answer."""
    return Refused(503, message, code=code, headers={"retry-after": str(RETRY_SECONDS)})


def failed(message: str, code: str = "internal_error") -> Refused:
    """Something went wrong here, not in the request."""
    return Refused(500, message, code=code)
