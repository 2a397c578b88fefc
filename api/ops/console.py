"""``GET /``: the console, a static page that works by the routes that all clients use. It needs no internet."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles

from api.operations import STRING, answer, describe

FOLDER = files("api").joinpath("static")

#: Nothing but its own scripts and styles, by their addresses: an injected script would not run.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Static(StaticFiles):
    """Files that a browser asks for each time (304 where they are the same): a new version is seen at once."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """A file, or 304."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def install(app: FastAPI, flower_port: int) -> None:
    """Serve the page at ``/`` and its files below ``/static/console``."""
    text = FOLDER.joinpath("index.html").read_text().replace('data-port="5555"', f'data-port="{flower_port}"')
    page = HTMLResponse(text, headers={"Content-Security-Policy": POLICY})
    app.mount("/static/console", Static(directory=str(FOLDER)))

    @app.get(
        "/",
        openapi_extra=describe("The console, a web page", {200: answer(STRING, "The page", media_types=["text/html"])}),
    )
    async def console() -> HTMLResponse:
        return page
