"""Many messages in one request, each with its own result: a bad one never spoils the others."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from http import HTTPStatus
from typing import Annotated, Any, Literal, NamedTuple, Union
from uuid import UUID, uuid5

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Discriminator, FailFast, Field, TypeAdapter, ValidationError, create_model

from ackline.infra.wire import uuid7
from ackline.producer.envelope import Entry
from ackline.producer.gateway import parameters
from ackline.producer.gateway.acceptance import State
from ackline.producer.gateway.keys import Caller
from ackline.producer.gateway.messages import accepted, answer, broken_contract, entry_of
from ackline.producer.gateway.parameters import IDEMPOTENCY_KEY, SHORT_TEXT, TRAVELLING, Options
from ackline.producer.gateway.problems import PROBLEM, RETRY_AFTER, Refusal, faults
from ackline.producer.gateway.service import Service, service
from ackline.producer.message import contracts, unknown

router = APIRouter()

_NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")
_NO_OPTIONS = Options()
_SPACE = re.compile(r"[ \t\n\r]*")
#: Only finds where a value ends: numbers are not read, of which one with too many digits would spoil the array.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)


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
    read = _lines if parameters.content_type(request) in _NDJSON else _array
    items = read(body, Bounds(settings.max_batch, settings.max_body_bytes))
    if not items:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "The batch is empty.")
    caller.take(len(items) - 1)  # the request itself was counted as one

    key = request.headers.get("idempotency-key")
    if key is None:
        return _answer(await _accept(served, caller, items, lambda index: uuid7(), travelling))

    async def work(message_id: str, again: bool) -> dict[str, Any]:
        # Derived, so that a batch that is tried again has the same ids.
        batch_id = UUID(message_id)
        return await _accept(served, caller, items, lambda index: str(uuid5(batch_id, str(index))), travelling)

    asked = (
        repr(travelling.get("correlation_id")).encode() + body
    )  # not the trace context, of which each try has another
    return _answer(*await served.idempotency.once(caller.name, key, asked, work, _stands))


def _stands(answer: dict[str, Any]) -> bool:
    """Whether an answer is the last word: not when nothing was accepted, and some of it might be, soon."""
    statuses = {result["status"] for result in answer["results"]}
    return 202 in statuses or max(statuses) < 500


async def _accept(
    served: Service,
    caller: Caller,
    items: Sequence[Item | Refusal],
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
            if isinstance(item, Refusal):
                raise item
            caller.require(item.type)
            entry = entry_of(served, item.data, item.id or id_of(index), travelling, _NO_OPTIONS)
            if len(entry.payload) > served.settings.max_body_bytes:
                raise _too_large(served.settings.max_body_bytes)
            parsed[index] = entry, served.stamps.of(item.data).track
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


# --- what the items say -----------------------------------------------------------------------------------------------


class Bounds(NamedTuple):
    """Of a batch: messages, and bytes of one message."""

    messages: int
    bytes: int


def _lines(body: bytes, bounds: Bounds) -> list[Item | Refusal]:
    """What each line of *body* says that is not empty."""
    lines = [line for line in body.split(b"\n") if line.strip()]
    if len(lines) > bounds.messages:
        raise _too_many(bounds)
    return [_item(line, bounds) for line in lines]


def _array(body: bytes, bounds: Bounds) -> list[Item | Refusal]:
    """What each element of the JSON array says that *body* is. Raises `Refusal` when it is none."""
    try:
        items = _readers(len(contracts())).array.validate_json(body)  # nearly always all is well
    except Exception:
        elements = list(itertools.islice(_elements(body), bounds.messages + 1))
        if len(elements) > bounds.messages:
            raise _too_many(bounds) from None
        return [_item(element, bounds) for element in elements]
    if len(items) > bounds.messages:
        raise _too_many(bounds)
    return list(items)


def _item(written: bytes | str, bounds: Bounds) -> Item | Refusal:
    """What one item says, or why it is none."""
    if len(written) > bounds.bytes:
        return _too_large(bounds.bytes)
    try:
        return _readers(len(contracts())).item.validate_json(written)
    except Exception:
        return _fault(written)


def _fault(written: bytes | str) -> Refusal:
    """Why that is no item."""
    try:
        value = json.loads(written.decode() if isinstance(written, bytes) else written)
    except (ValueError, RecursionError) as error:
        return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The item is not JSON: {_said(error)}.")
    name = value.get("type") if isinstance(value, dict) else None
    if not isinstance(name, str):
        return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "An item is an object with `type`, `data` and perhaps `id`.")
    model = contracts().get(name)
    if model is None:
        return Refusal(HTTPStatus.NOT_FOUND, unknown(name))
    try:
        _item_of(name, model).model_validate_json(written)
    except ValidationError as error:
        return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The item is no {name}.", faults(error))
    except Exception as error:
        return broken_contract(name, error)
    return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "The item is nested too deeply, or is no JSON in some other way.")


class _Readers(NamedTuple):
    """What reads items of all contracts in one pass."""

    item: TypeAdapter[Item]
    array: TypeAdapter[list[Item]]


@lru_cache(maxsize=1)
def _readers(known: int) -> _Readers:
    """known: how many contracts there are; they only ever become more."""
    items = tuple(_item_of(name, model) for name, model in contracts().items())
    one: Any = Annotated[Union[items], Discriminator("type")] if len(items) > 1 else items[0]  # noqa: UP007
    return _Readers(TypeAdapter(one), TypeAdapter(Annotated[list[one], FailFast()]))


@cache
def _item_of(name: str, model: type[BaseModel]) -> type[Item]:
    """`Item` of one contract."""
    only: Any = Literal[name]
    return create_model("Item", __base__=Item, type=(only, ...), data=(model, ...))


def _elements(body: bytes) -> Iterator[str]:
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
                _, end = _DECODER.raw_decode(text, at)
                yield text[at:end]
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


def _too_many(bounds: Bounds) -> Refusal:
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The batch has more than {bounds.messages:,} messages (ACKLINE_MAX_BATCH).",
    )


def _too_large(most: int) -> Refusal:
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The message has more than {most:,} bytes (ACKLINE_MAX_BODY_BYTES)."
    )
