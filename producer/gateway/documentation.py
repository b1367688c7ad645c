"""`/docs`: the calls of the gateway, to read and to try, on machines without internet too.

FastAPI's own page loads Swagger UI from a content delivery network. Here it comes from the package fastapi-swagger, of
which only the files are used.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles


def install(app: FastAPI) -> None:
    """Serve the page. *app* is made with `docs_url=None, redoc_url=None`."""
    # Relative, so that they hold behind a proxy that serves the gateway below a path.
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=app.title,
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="docs/assets/favicon-32x32.png",
        swagger_ui_parameters={"persistAuthorization": True, "displayRequestDuration": True},
    )

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return page

    app.mount("/docs/assets", StaticFiles(directory=str(files("fastapi_swagger.resources"))))
