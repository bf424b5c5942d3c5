"""A machine-learning backend for Label Studio: it proposes brush masks, which people then correct.

    python examples/label_studio_backend.py runs/mine pictures

Then in Label Studio: Settings, Model, Connect Model, http://127.0.0.1:9090. The project has a local storage over
the same folder, and the labelling interface that `predict --save label-studio` writes as label-studio.xml.
The requests and answers are those of Label Studio's backends; no package of theirs is needed.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

from cssformer import Predictor
from cssformer.inference.annotations import AnnotationFiles
from cssformer.utils.errors import UserError


class Backend:
    def __init__(self, model: str, pictures: Path, device: str = "auto") -> None:
        self.predictor, self.pictures, self.version = Predictor.from_pretrained(model, device), pictures, model

    def answer(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """To `/predict` the predictions of the tasks, to `/setup` and `/health` that the model is there."""
        if path == "/predict":
            return {"results": [self.predict(task) for task in request["tasks"]], "model_version": self.version}
        return {"status": "UP", "model_version": self.version}

    def predict(self, task: dict[str, Any]) -> dict[str, Any]:
        """A brush mask for each class but the background."""
        name = parse_qs(urlparse(task["data"]["image"]).query)["d"][0]
        picture = (self.pictures / name).resolve()
        if not picture.is_relative_to(self.pictures.resolve()):
            raise UserError(f"{name} is not below {self.pictures}.")
        classes, colours = self.predictor.classes, self.predictor.colours
        files = AnnotationFiles(self.pictures, ["label-studio"], classes, colours, ["background"], self.version)
        files.add(self.predictor(picture), picture, picture.with_suffix(""))
        (entry,) = files.entries.values()
        return entry["label-studio"]["predictions"][0]


def serve(backend: Backend, port: int = 9090) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, backend.answer(self.path, {}))

        def do_POST(self) -> None:
            try:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._send(200, backend.answer(self.path, request))
            except (UserError, ValueError, KeyError, TypeError) as error:
                self._send(400, {"error": str(error)})

        def _send(self, status: int, content: dict[str, Any]) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    serve(Backend(sys.argv[1], Path(sys.argv[2]))).serve_forever()
