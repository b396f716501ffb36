"""Every error as JSON in OpenAI's shape: {"error": {"message": "one sentence", "type": …, "code": 400}}."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
WHERE = {
    404: "There is nothing at {path}. Ask /v1/segment or /v1/chat/completions.",
    405: "{path} takes no {method}.",
}
UNREADABLE = "There was an error parsing the body"  # FastAPI's words


def add_handlers(app: FastAPI) -> None:
    app.add_exception_handler(AnyHTTPException, _http)
    app.add_exception_handler(RequestValidationError, _misshapen)
    app.add_exception_handler(Exception, _failed)


def error_body(status: int, sentence: str) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": sentence, "type": kind, "param": None, "code": status}}


def error_response(error: AnyHTTPException) -> JSONResponse:
    return JSONResponse(error_body(error.status_code, str(error.detail)), error.status_code, error.headers)


async def _http(request: Request, error: Any) -> JSONResponse:
    if error.status_code in WHERE and error.detail in ("Not Found", "Method Not Allowed"):
        error.detail = WHERE[error.status_code].format(path=request.url.path[:80], method=request.method)
    if error.detail == UNREADABLE:
        error.detail = "The body cannot be read: it is not UTF-8, or nested too deeply. Send a JSON object."
    return error_response(error)


async def _misshapen(request: Request, error: Any) -> JSONResponse:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    if "UploadFile" in first["msg"]:
        sentence = f"{place} is no file. Send it as one, for example: curl -F {place}=@photo.jpg"
    elif first["type"] == "json_invalid":
        sentence = f"The body is not JSON ({first.get('ctx', {}).get('error', 'it ends too early')})."
    elif not place:
        sentence = "The body is no JSON object. Send one, with Content-Type: application/json."
    else:
        sentence = f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}."
    return JSONResponse(error_body(400, sentence), 400)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    sentence = f"The server failed ({type(error).__name__}). Its log has the details."
    return JSONResponse(error_body(500, sentence), 500)
