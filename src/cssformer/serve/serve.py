"""``cssformer serve``: a page and an endpoint on one port, until somebody asks to stop."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cssformer.inference.predictor import Predictor
from cssformer.utils.atomic import require_temporary_folder
from cssformer.utils.errors import UserError
from cssformer.utils.options import Natural, Port, Positive

CONNECTIONS = 256
"""As many as are answered at one time; whoever comes then is told to come again."""
STOP_SECONDS = 2
"""How long open connections are waited for in the end."""


def serve(
    model: str,
    views: dict[str, Any],
    begun: Callable[[str], None],
    *,
    host: str = "127.0.0.1",
    port: Port = 7860,
    token: str | None = None,
    queue: Natural = 8,
    max_megabytes: Positive = 32.0,
    max_megapixels: Positive = 25.0,
) -> None:
    """Serve a model until Ctrl-C or SIGTERM.

    Args:
        model: A run folder, a model folder or a Hugging Face model id.
        views: The device and the options of :class:`Predictor`.
        begun: Called with the address, once it answers.
        host: Where to listen; 127.0.0.1 is for this machine alone, 0.0.0.0 for all that reach it.
        port: On which port; 0 takes a free one.
        token: Ask for this word, as Authorization: Bearer, and in browsers as the password of any user.
        queue: How many pictures may wait beside the one at work; the next is told that the server is busy.
        max_megabytes: Of an upload, in millions of bytes.
        max_megapixels: Of a picture, in millions of pixels.

    Raises:
        UserError: there is no such model, the port is not free, or no folder takes temporary files.
        ModuleNotFoundError: a package of the extra ``web`` is not installed.
    """
    import uvicorn

    if token is not None and not (token and token.isascii() and token.isprintable()):
        raise UserError("The token is empty or has letters that headers cannot hold; give ASCII letters and digits.")
    require_temporary_folder()
    # Before what takes long.
    with _listening(host, port) as listener, TemporaryDirectory(prefix="cssformer-") as name:
        # Without links, as the paths of uploads are. Gradio reads it as it is imported and as the page is made.
        uploads = Path(name).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        from cssformer.serve.app import make_app
        from cssformer.serve.service import Service

        predictor = Predictor.from_pretrained(model, **views)
        service = Service(predictor, Path(model).name, queue, max_megapixels)
        app = make_app(service, uploads, token, int(max_megabytes * 1e6))
        address = f"[{host}]" if ":" in host else host
        begun(f"http://{address}:{listener.getsockname()[1]}/")
        config = uvicorn.Config(
            app, log_config=None, limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=STOP_SECONDS
        )
        try:
            uvicorn.Server(config).run([listener])
        finally:
            service.close()


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"Cannot listen on port {port} of {host}: {error.strerror or error}; give another --port or --host."
        ) from None
