"""Refusals in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from tunesmith.kube.connection import ApiError

TYPES = {401: "authentication_error", 403: "permission_error", 409: "conflict_error", 429: "rate_limit_error"}
CODES = {401: "invalid_api_key", 403: "permission_denied", 404: "not_found"}
UNPROCESSABLE = 422


class ApiRefusal(Exception):
    """A request that is refused: the HTTP status and the fields of OpenAI's error object."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = code or CODES.get(status)

    @property
    def body(self) -> dict[str, Any]:
        """The answer."""
        kind = TYPES.get(self.status) or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def no_such(what: str, name: str, param: str) -> ApiRefusal:
    """Refusal for an object that is not there."""
    return ApiRefusal(f"No such {what}: {name}", status=404, param=param)


def of_kubernetes(error: ApiError) -> ApiRefusal:
    """What the API server's refusal means to the caller."""
    match error.status:
        case 401:
            message = "Incorrect API key provided: it must be a Kubernetes token that the cluster accepts."
            return ApiRefusal(message, status=401)
        case 403:
            return ApiRefusal(f"{error.message}. Ask for the role `edit` in this namespace.", status=403)
        case 400 | 422:
            causes = [f"{one.get('field', '')}: {one.get('message', '')}" for one in error.details.get("causes", ())]
            return ApiRefusal("; ".join(causes) or error.message)
        case 404 | 409 | 429:
            return ApiRefusal(error.message, status=error.status)
        case _:
            return ApiRefusal(f"The API server refused: {error.message}", status=502)


def of_validation(error: ValidationError) -> ApiRefusal:
    """The first thing that is wrong with a request's body."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "extra_forbidden":
            return ApiRefusal(f"Unrecognized request argument supplied: {path}", param=path, code="unknown_parameter")
        case "missing":
            return ApiRefusal(f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter")
        case _:
            message = f"Invalid value for '{path}': {first['msg'].removeprefix('Value error, ')}."
            return ApiRefusal(message, param=path or None, code="invalid_value")
