"""Many messages in one request, each with its own result: a bad one never spoils the others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple
from uuid import UUID, uuid5

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ackline.infra.wire import uuid7
from ackline.producer.envelope import Entry
from ackline.producer.gateway import parameters
from ackline.producer.gateway.acceptance import State
from ackline.producer.gateway.keys import Caller
from ackline.producer.gateway.messages import accepted, answer, entry_of
from ackline.producer.gateway.parameters import IDEMPOTENCY_KEY, SHORT_TEXT, TRAVELLING, Options
from ackline.producer.gateway.problems import PROBLEM, RETRY_AFTER, Refusal, faults
from ackline.producer.gateway.service import Service, service
from ackline.producer.message import contracts, unknown

router = APIRouter()

_NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")
_NO_OPTIONS = Options()
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class Item(BaseModel):
    """One message of a batch."""

    model_config = ConfigDict(extra="forbid")

    type: str
    data: Any = Field(description="the payload")
    id: str | None = Field(
        default=None, max_length=SHORT_TEXT, pattern=r"^[\x21-\x2e\x30-\x7e]+$", description="the id of an earlier try"
    )


class Result(BaseModel):
    """What became of one message of a batch: `status` is what it would have got alone."""

    index: int
    status: int
    id: str | None = None
    type: str | None = None
    state: State | None = None
    status_url: str | None = None
    title: str | None = None
    detail: str | None = None
    errors: list[dict[str, Any]] | None = None


class Results(BaseModel):
    """What became of each message of a batch, in its order."""

    results: list[Result]


class Written(NamedTuple):
    """One item as it came. text: its JSON; value: what that says; or the refusal that it gets."""

    text: str = ""
    value: Any = None
    refusal: Refusal | None = None


_DOCUMENTED: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "array", "items": Item.model_json_schema()}},
            "application/x-ndjson": {"schema": Item.model_json_schema()},
        },
    },
    "parameters": [IDEMPOTENCY_KEY, *TRAVELLING],
}


@router.post(
    "/v1/messages",
    status_code=202,
    response_model=Results,
    summary="Publish many messages",
    responses={207: {"model": Results, "description": "Some were accepted, and some were not"}},
    openapi_extra=_DOCUMENTED,
)
async def publish_batch(request: Request) -> Response:
    """Publish a JSON array, or lines of JSON, of `{type, data, id?}`; answer with a result for each, in its order.

    202 when all were accepted, 207 when some were; when none was, the status that they share, or 422.
    """
    served = service(request)
    caller = served.keys.caller(request)
    settings = served.settings
    travelling = parameters.travelling(request)
    body = await parameters.body(request, settings.max_batch_bytes, "ACKLINE_MAX_BATCH_BYTES", _NDJSON)
    items = list(_lines(body) if parameters.content_type(request) in _NDJSON else _elements(body))
    if not items:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "The batch is empty.")
    if len(items) > settings.max_batch:
        raise Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The batch has {len(items):,} messages; {settings.max_batch:,} are allowed (ACKLINE_MAX_BATCH).",
        )
    caller.take(len(items) - 1)  # the request itself was counted as one

    key = request.headers.get("idempotency-key")
    if key is None:
        return _answer(await _accept(served, caller, items, lambda _: uuid7(), travelling))

    async def work(message_id: str) -> dict[str, Any]:
        # Derived, so that a batch that is tried again has the same ids.
        batch_id = UUID(message_id)
        return await _accept(served, caller, items, lambda index: str(uuid5(batch_id, str(index))), travelling)

    asked = repr(travelling).encode() + body
    return _answer(*await served.idempotency.once(caller.name, key, asked, work))


async def _accept(
    served: Service,
    caller: Caller,
    items: Sequence[Written],
    id_of: Callable[[int], str],
    travelling: Mapping[str, str],
) -> dict[str, Any]:
    """Publish what can be; a result for each item.

    id_of: the message id of an item that brings none, by its index.
    """
    results: list[dict[str, Any]] = []
    parsed: dict[int, tuple[Entry, bool]] = {}
    for index, item in enumerate(items):
        try:
            message, own_id = _message(served, caller, item)
            entry = entry_of(served, message, own_id or id_of(index), travelling, _NO_OPTIONS)
            parsed[index] = entry, served.stamps.of(message).track
            results.append({})
        except Refusal as refusal:
            results.append({"index": index, **refusal.problem()})
    states = await served.acceptance.accept_all([entry for entry, _ in parsed.values()])
    for (index, (entry, tracked)), state in zip(parsed.items(), states, strict=True):
        if isinstance(state, Refusal):
            results[index] = {"index": index, "id": entry.message_id, "type": entry.type, **state.problem()}
        else:
            results[index] = {"index": index, "status": 202, **accepted(served, entry, state, tracked=tracked)}
    return {"results": results}


def _message(served: Service, caller: Caller, item: Written) -> tuple[BaseModel, str | None]:
    """The message that one item is, and the id that it brings. Raises `Refusal`."""
    if item.refusal is not None:
        raise item.refusal
    most = served.settings.max_body_bytes
    if len(item.text) > most:
        raise Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The item has more than {most:,} bytes (ACKLINE_MAX_BODY_BYTES)."
        )
    name = item.value.get("type") if isinstance(item.value, dict) else None
    if not isinstance(name, str):
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "An item is an object with `type`, `data` and perhaps `id`.")
    caller.require(name)
    model = contracts().get(name)
    if model is None:
        raise Refusal(HTTPStatus.NOT_FOUND, unknown(name))
    try:
        found = _item_of(model).model_validate_json(item.text)
    except ValidationError as error:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The item is no {name}.", faults(error)) from None
    return found.data, found.id


@lru_cache(maxsize=1024)
def _item_of(model: type[BaseModel]) -> Any:
    """`Item` with the payload of one contract."""
    return create_model("Item", __base__=Item, data=(model, ...))


def _answer(content: dict[str, Any], repeated: bool = False) -> Response:
    statuses = {result["status"] for result in content["results"]}
    if 202 in statuses:
        return answer(content, repeated, 202 if len(statuses) == 1 else 207)
    status = HTTPStatus(statuses.pop() if len(statuses) == 1 else 422)
    said = "No message of the batch was accepted; `results` says why of each."
    problem = answer({"title": status.phrase, "status": status, "detail": said, **content}, repeated, status)
    problem.headers["Content-Type"] = PROBLEM
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        problem.headers["Retry-After"] = str(RETRY_AFTER)
    return problem


def _lines(body: bytes) -> Iterator[Written]:
    """The lines of *body* that are not empty."""
    for line in body.split(b"\n"):
        if not line.strip():
            continue
        try:
            text = line.decode()
            yield Written(text, json.loads(text))
        except (ValueError, RecursionError) as error:
            refusal = Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The line is not JSON: {_said(error)}.")
            yield Written(refusal=refusal)


def _elements(body: bytes) -> Iterator[Written]:
    """The elements of the JSON array that *body* is, each as it is written there. Raises `Refusal`.

    As written, so that each contract reads its own payload: a decimal with many digits is more than a float.
    """
    try:
        text = body.decode()
        at = _past_space(text, 0)
        if text[at : at + 1] != "[":
            raise ValueError("it does not begin with [")
        at = _past_space(text, at + 1)
        if text[at : at + 1] == "]":
            at += 1
        else:
            while True:
                value, end = _DECODER.raw_decode(text, at)
                yield Written(text[at:end], value)
                at = _past_space(text, end) + 1
                if text[at - 1 : at] == "]":
                    break
                if text[at - 1 : at] != ",":
                    raise ValueError(f"there is no , or ] at character {at - 1}")
                at = _past_space(text, at)
        if (at := _past_space(text, at)) != len(text):
            raise ValueError(f"there is more after the array, at character {at}")
    except (ValueError, RecursionError) as error:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The body is no JSON array: {_said(error)}.") from None


def _past_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing at all, too


def _said(error: ValueError | RecursionError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
