"""The HTTP side of ``cssformer serve``: the endpoint for programs, its description, and what guards all of it."""

import asyncio
import base64
import hmac
from collections.abc import Callable
from contextlib import suppress
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cssformer import __version__
from cssformer.inference.prediction import Prediction
from cssformer.serve.answers import Save, answer
from cssformer.serve.page import mount
from cssformer.serve.service import Busy, Service
from cssformer.utils.errors import UserError, is_full_disk

UPLOAD_SECONDS = 60
"""How long an upload may take that has a place in the queue."""
RETRY_SECONDS = 2
FULL = "The server's disk is full, so that it cannot keep files now; tell those who run it."
MOST_UPLOADS, MOST_FILES = 64, 1024
"""How much the page keeps, uploads and views: as many bytes as so many largest requests, and so many files."""
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
"""What browsers may load for the page: nothing from elsewhere."""
BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
        },
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    },
}


def make_app(service: Service, uploads: Path, token: str | None, max_bytes: int) -> "Guard":
    """The page, and the endpoints ``POST /predict``, ``GET /health``, ``GET /docs`` and ``GET /openapi.json``.

    Args:
        service: what predicts.
        uploads: the folder that Gradio keeps its files in.
        token, max_bytes: see :class:`Guard`.
    """
    app = FastAPI(title="cssformer", version=__version__, docs_url=None, redoc_url=None)

    async def answered(predict: Callable[[], Prediction], save: Save, picture: str) -> Response:
        # In one turn, so that no other prediction is made while this one is held.
        file = await service.run(lambda: answer(predict(), save, picture, service.model))
        named = {"Content-Disposition": f"inline; filename*=UTF-8''{quote(file.name)}"}
        return Response(file.content, media_type=file.media_type, headers=named)

    @app.post("/predict", openapi_extra={"requestBody": BODY}, response_class=Response)
    async def predict(request: Request, save: Save = "labels", name: str = "picture") -> Response:
        """Label a picture, sent as the body or as the one file of a form.

        The answer is a file: labels (PNG of class indices with a palette), overlay (JPEG), confidence (grey PNG, 255 is
        certain), json (size, shares, mean confidence), geojson or coco (outlines). Errors are one sentence, {"detail":
        ...}: 400 no picture or too many pixels, 401 no token, 408 too slow, 413 too many bytes, 503 busy, 507 no room.
        """
        with service.place():
            data, sent = await asyncio.wait_for(_picture(request), UPLOAD_SECONDS)
            picture = plain_name(sent or name)
            return await answered(lambda: service.predict(data, Path(picture)), save, picture)

    @app.api_route("/predict", methods=["GET", "HEAD", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def not_so() -> Response:
        # The page, which is mounted at "/", would answer that nothing is here.
        raise HTTPException(405, "Send a picture by POST.", {"Allow": "POST"})

    @app.get("/download", include_in_schema=False)
    async def download(file: str, save: Save = "labels") -> Response:
        # A name with a zero byte is no path at all.
        path = (uploads / file.replace("\0", "")).resolve()
        if not path.is_relative_to(uploads):
            raise UserError("This file was not uploaded here.")
        with service.place():
            return await answered(lambda: service.uploaded(path), save, path.name)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server answers; needs no token."""
        return {"status": "ok", "model": service.model, "version": __version__}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_described(app.openapi()))

    @app.exception_handler(UserError)
    async def wrong(request: Request, error: UserError) -> JSONResponse:
        return _sentence(507, FULL) if is_full_disk(error) else _sentence(400, str(error))

    @app.exception_handler(OSError)
    async def broken(request: Request, error: OSError) -> JSONResponse:
        if is_full_disk(error):
            return _sentence(507, FULL)
        raise error

    @app.exception_handler(RequestValidationError)
    async def unknown(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _sentence(400, f"{first['loc'][-1]}: {first['msg']}.")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return _sentence(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(TimeoutError)
    @app.exception_handler(asyncio.TimeoutError)
    async def slow(request: Request, error: Exception) -> JSONResponse:
        return _sentence(408, f"The upload took longer than {UPLOAD_SECONDS} seconds.")

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> JSONResponse:
        return _sentence(503, str(error), {"Retry-After": str(RETRY_SECONDS)})

    return Guard(mount(app, service, uploads, max_bytes), uploads, token, max_bytes)


def make_room(uploads: Path, most_bytes: int, most_files: int) -> None:
    """Delete the oldest files of a folder until it holds no more than so many bytes and files."""
    files = []
    for path in uploads.rglob("*"):
        # Others delete too.
        with suppress(OSError):
            if path.is_file():
                files.append((path.stat().st_mtime, path.stat().st_size, path))
    for number, (_, size, path) in enumerate(sorted(files, reverse=True)):
        most_bytes -= size
        if most_bytes < 0 or number >= most_files:
            path.unlink(missing_ok=True)


def plain_name(name: str) -> str:
    """The last part of a path from anywhere, as a name that every file system takes."""
    last = PurePosixPath(name.replace("\\", "/")).name
    return "".join(letter for letter in last if letter.isprintable())[-60:] or "picture"


async def _picture(request: Request) -> tuple[bytes, str]:
    """The bytes of the picture that a request holds, and the name of its file if that is told."""
    if not request.headers.get("content-type", "").startswith("multipart/"):
        data, name = await request.body(), ""
    else:
        async with request.form(max_files=1, max_fields=8) as form:
            files = [each for each in form.values() if isinstance(each, UploadFile)]
            if not files:
                raise UserError("The form holds no file; send the picture as one.")
            data, name = await files[0].read(), files[0].filename or ""
    if not data:
        raise UserError("The picture has no bytes; send it as the body, or as the file of a form.")
    return data, name


def _sentence(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": text}, status, headers)


def _described(schema: dict[str, Any]) -> str:
    """An OpenAPI description as a page that needs nothing else."""
    parts = []
    for path, methods in schema["paths"].items():
        for method, facts in methods.items():
            parts.append(f"<h2>{method.upper()} {escape(path)}</h2><p>{escape(facts['description'])}</p>")
            for given in facts.get("parameters", ()):
                kind = given["schema"]
                values = " | ".join(kind.get("enum", [kind["type"]]))
                parts.append(f"<p><code>{given['name']}</code>: {values}; {kind.get('default', 'required')}</p>")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<title>cssformer: endpoint</title><style>body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;"
        "margin:auto;padding:1rem}pre{overflow-x:auto}</style><h1>cssformer</h1>"
        "<pre>curl --data-binary @photo.jpg 'http://HOST:PORT/predict?save=labels' -o labels.png\n"
        "curl -F file=@photo.jpg 'http://HOST:PORT/predict?save=json' -H 'Authorization: Bearer TOKEN'</pre>"
        f"{''.join(parts)}<p>For programs: <a href=openapi.json>openapi.json</a></p></html>"
    )


class Guard:
    """Around an application: who may come in, and how much they may send.

    Args:
        app: what is guarded.
        uploads: the page's folder, whose oldest files go for new ones.
        token: asked for as ``Authorization: Bearer TOKEN``, or by browsers as the password of any user; None is all.
        max_bytes: of a request's body.
    """

    def __init__(self, app: ASGIApp, uploads: Path, token: str | None, max_bytes: int) -> None:
        self.app, self.uploads, self.token, self.max_bytes = app, uploads, token, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not self._is_known(headers.get("authorization", "")) and scope["path"] != "/health":
            asked = {"WWW-Authenticate": 'Basic realm="cssformer", charset="UTF-8"'}
            text = "Give the token: as Authorization: Bearer TOKEN, in a browser as the password of any user."
            await _sentence(401, text, asked)(scope, receive, send)
            return
        large = _sentence(413, f"The request has more than {self.max_bytes} bytes, which is all that is taken.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.max_bytes:
            await large(scope, receive, send)
            return
        if scope["method"] == "POST" and scope["path"] != "/predict":
            await asyncio.to_thread(make_room, self.uploads, MOST_UPLOADS * self.max_bytes, MOST_FILES)
        taken, refused = 0, False

        async def bounded() -> Message:
            nonlocal taken, refused
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.max_bytes:
                refused = True
                await large(scope, receive, send)
                raise ConnectionError("too many bytes")
            return message

        async def policed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            if not refused:
                await send(message)

        try:
            await self.app(scope, bounded, policed)
        except ConnectionError:
            if not refused:
                raise

    def _is_known(self, authorization: str) -> bool:
        if self.token is None:
            return True
        kind, _, word = authorization.partition(" ")
        if kind.lower() == "basic":
            try:
                word = base64.b64decode(word).decode().partition(":")[2]
            except ValueError:
                return False
        return hmac.compare_digest(word.encode(), self.token.encode())
