"""`/docs`: the calls of the gateway, to read and to try, on machines without internet too.

FastAPI's own page loads Swagger UI from a content delivery network. Here it comes from the package fastapi-swagger, of
which only the files are used.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import BaseModel
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from ackline.producer.message import contracts
from ackline.producer.schema import NoSchema, schema_of


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


def describe_contracts(app: FastAPI) -> None:
    """Let *app*'s OpenAPI document say which types there are, and what each takes."""
    framework = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = framework()
            publish = document["paths"]["/v1/messages/{type}"]["post"]
            type_ = next(found for found in publish["parameters"] if found["name"] == "type")
            type_["schema"]["enum"] = sorted(contracts())
            payloads = document.setdefault("components", {}).setdefault("schemas", {})
            names = [_add(payloads, name, model) for name, model in sorted(contracts().items())]
            any_of = [{"$ref": f"#/components/schemas/{name}"} for name in names]
            publish["requestBody"]["content"]["application/json"]["schema"] = {"anyOf": any_of}
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def _add(schemas: dict[str, Any], name: str, model: type[BaseModel]) -> str:
    """Add the payload of one contract, and what it is made of, to *schemas*. Returns its name there."""
    try:
        schema = schema_of(model, ref_template=f"#/components/schemas/{name}.{{model}}")
    except NoSchema:
        schema = {}
    schemas.update({f"{name}.{part}": found for part, found in schema.pop("$defs", {}).items()})
    schemas[name] = schema
    return name
