"""The chat page at /, which is the one of the browser export with another transport."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse

from onebit.engine.conversation import render_template
from onebit.errors import OnebitError
from onebit.formats.web_folder import page_files
from onebit.serve.service import Service

__all__ = ["add_page"]

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}


def add_page(app: FastAPI, service: Service) -> None:
    """Serve the page's files, and what they ask about the model."""
    files = {path.name: path for path in page_files() if path.suffix in _TYPES}
    template, name = service.model.chat_template, service.settings.name
    settings = {"transport": "server", "title": name, "model": name}
    about = {
        "contextLength": service.context,
        "isChat": template is not None,
        "hasSystem": template is not None and _has_system(template),
    }

    @app.get("/page.json", include_in_schema=False)
    async def page_settings() -> JSONResponse:
        return JSONResponse(settings)

    @app.get("/about.json", include_in_schema=False)
    async def page_about() -> JSONResponse:
        return JSONResponse(about)

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(files["index.html"], headers=_HEADERS)

    def add(file_name: str) -> None:
        path = files[file_name]

        @app.get(f"/{file_name}", include_in_schema=False)
        async def send() -> FileResponse:
            return FileResponse(path, media_type=_TYPES[path.suffix], headers=_HEADERS)

    for file_name in files:
        add(file_name)


def _has_system(template: str) -> bool:
    """Whether a template writes what a system message says."""
    said = "what the system says"
    messages = [{"role": "system", "content": said}, {"role": "user", "content": "a question"}]
    try:
        return said in render_template(template, messages, {})
    except OnebitError:
        return False
