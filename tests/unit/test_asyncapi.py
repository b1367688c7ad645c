"""The contracts for those who do not read Python: JSON Schema and AsyncAPI."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from urllib.parse import unquote

import jsonschema
import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel

from ackline.infra.settings import Settings
from ackline.infra.topology import ConsumerQueue
from ackline.producer import message
from ackline.producer.asyncapi import asyncapi
from ackline.producer.message import _contracts
from ackline.producer.schema import DIALECT, NoSchema, bundle, schema_of

T = TypeVar("T")

#: Where the schema is from is said in the file.
OFFICIAL = json.loads((Path(__file__).parents[1] / "fixtures" / "asyncapi-3.0.0.schema.json").read_text())


@pytest.fixture(autouse=True)
def _only_the_contracts_of_this_test() -> Iterator[None]:
    before = dict(_contracts)
    _contracts.clear()
    yield
    _contracts.clear()
    _contracts.update(before)


def settings(url: str | None = "amqp://app:s3cret@rabbit.example:5673/orders") -> Settings:
    return Settings(amqp_url=url, service="shop", data_dir=Path("/nonexistent"))


def document(consumers: tuple[ConsumerQueue, ...] = (), url: str | None = settings().amqp_url) -> dict[str, Any]:
    """The AsyncAPI document, which is valid, and every reference in which leads to something."""
    made, missing = asyncapi(settings(url), consumers)
    assert missing == []
    check(made)
    return made


def check(made: dict[str, Any]) -> None:
    json.dumps(made, allow_nan=False)
    jsonschema.Draft7Validator(OFFICIAL).validate(made)
    for reference in references(made):
        resolve(made, reference)


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(made: dict[str, Any], reference: str) -> Any:
    assert reference.startswith("#/")
    node: Any = made
    for part in reference[2:].split("/"):
        node = node[unquote(part).replace("~1", "/").replace("~0", "~")]
    return node


class Line(BaseModel):
    sku: str
    count: int = 1


class Tree(BaseModel):
    """A tree of lines."""

    line: Line
    children: list[Tree] = []


class Page(BaseModel, Generic[T]):
    items: list[T]


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Point(NamedTuple):
    x: int
    y: str = "y"


class Odd(BaseModel):
    """Everything whose schema draft 7, or JSON, sees with other eyes."""

    pair: tuple[int, str]
    point: Point
    empty: tuple[()] = ()
    many: tuple[int, ...] = ()
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    limit: float = math.inf
    order_id: str = Field(alias="orderId")


class Unschematic(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    at: Path
    of: object = Field(json_schema_extra={"example": object()})  # type: ignore[dict-item]


def namesake() -> type[BaseModel]:
    class Line(BaseModel):
        text: str

    class Note(BaseModel):
        line: Line

    return Note


# --- AsyncAPI -------------------------------------------------------------------------------------------


def test_a_document_without_contracts_is_valid_too() -> None:
    assert document(url=None)["channels"] == {}


def test_a_type_is_a_channel_on_the_exchange_that_anybody_may_send_to() -> None:
    message("order.placed", version=3, track=True)(Tree)
    made = document()
    channel = made["channels"]["order.placed"]
    assert channel["address"] == "order.placed"
    assert channel["bindings"]["amqp"]["exchange"] == {
        "name": "ackline.messages",
        "type": "topic",
        "durable": True,
        "autoDelete": False,
        "vhost": "orders",
    }
    send = made["operations"]["send:order.placed"]
    assert send["action"] == "send"
    assert resolve(made, send["channel"]["$ref"]) is channel
    sent = resolve(made, resolve(made, send["messages"][0]["$ref"])["$ref"])
    assert sent["name"] == sent["bindings"]["amqp"]["messageType"] == "order.placed"
    assert (sent["x-ackline-version"], sent["x-ackline-tracked"], sent["description"]) == (
        "3",
        True,
        "A tree of lines.",
    )
    payload = resolve(made, sent["payload"]["$ref"])
    assert payload["properties"]["children"]["items"] == sent["payload"], "a reference to itself"


def test_the_server_is_named_without_its_credentials() -> None:
    made = document()
    assert made["servers"]["rabbitmq"] | {"security": None} == {
        "host": "rabbit.example:5673",
        "pathname": "/orders",
        "protocol": "amqp",
        "protocolVersion": "0-9-1",
        "description": "RabbitMQ",
        "security": None,
    }
    assert "s3cret" not in json.dumps(made)
    assert "app" not in json.dumps(made["servers"])


@pytest.mark.parametrize(
    ("url", "host", "pathname", "protocol"),
    [
        ("amqp://rabbit.example", "rabbit.example:5672", "/%2F", "amqp"),
        ("amqps://u:p@rabbit.example/", "rabbit.example:5671", "/%2F", "amqps"),
        ("amqp://u:p@[::1]:1/a%2Fb", "[::1]:1", "/a%2Fb", "amqp"),
    ],
)
def test_the_address_is_read_as_a_client_reads_it(url: str, host: str, pathname: str, protocol: str) -> None:
    server = document(url=url)["servers"]["rabbitmq"]
    assert (server["host"], server["pathname"], server["protocol"]) == (host, pathname, protocol)


def test_a_consumer_is_a_channel_that_is_its_queue_and_receives_its_types() -> None:
    message("order.placed")(Tree)
    message("order.paid")(Line)
    made = document((ConsumerQueue("billing", ("order.paid", "order.placed")), ConsumerQueue("order.paid", ())))
    receive = made["operations"]["receive:billing"]
    channel = resolve(made, receive["channel"]["$ref"])
    assert channel["bindings"]["amqp"]["queue"]["name"] == channel["address"] == "billing"
    received = [resolve(made, resolve(made, each["$ref"])["$ref"])["name"] for each in receive["messages"]]
    assert received == ["order.paid", "order.placed"]
    assert made["channels"]["queue:order.paid"]["messages"] == {}


def test_a_consumer_may_have_any_name() -> None:
    message("order.placed")(Tree)
    name = "bi/ll~ing 100% #ü"
    made = document((ConsumerQueue(name, ("order.placed", "unknown.type")),))
    channel = resolve(made, made["operations"][f"receive:{name}"]["channel"]["$ref"])
    assert channel["bindings"]["amqp"]["queue"]["name"] == name
    assert channel["address"] is None, "a fragment is not allowed in it"


def test_nested_models_of_equal_names_are_told_apart_and_shared_ones_shared() -> None:
    message("a")(Tree)
    message("b")(namesake())
    message("c")(Page[Line])
    message("d")(RootModel[list[Line]])
    schemas = document()["components"]["schemas"]
    lines = [schema for name, schema in schemas.items() if "properties" in schema and schema.get("title") == "Line"]
    assert sorted(sorted(line["properties"]) for line in lines) == [["count", "sku"], ["text"]]


def test_odd_shapes_are_written_as_draft_7_knows_them() -> None:
    message("odd")(Odd)
    made = document()
    found = resolve(made, made["components"]["messages"]["odd"]["payload"]["$ref"])
    assert found["properties"]["limit"]["default"] is None
    assert set(found["required"]) == {"pair", "point", "pet", "orderId"}
    assert "discriminator" not in found["properties"]["pet"]
    validator = jsonschema.Draft7Validator({**made, **found})
    good = {"pair": [1, "a"], "point": [1, "a"], "pet": {"kind": "cat"}, "orderId": "A"}
    Odd.model_validate(good)
    validator.validate(good)
    for wrong in (
        {"pair": ["a", 1]},
        {"point": ["a"]},
        {"point": [1, "a", 2]},
        {"empty": [1]},
        {"pet": {"kind": "cow"}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(good | wrong)


def test_a_contract_without_a_schema_is_named_and_does_not_spoil_the_others() -> None:
    message("good")(Tree)
    message("bad.one")(Unschematic)
    made, [problem] = asyncapi(settings())
    check(made)
    assert str(problem).startswith(f"bad.one ({__name__}.Unschematic) has no JSON Schema: ")
    assert "payload" not in made["components"]["messages"]["bad.one"]
    assert "payload" in made["components"]["messages"]["good"]
    assert "send:bad.one" in made["operations"]


def test_a_description_that_is_no_unicode_is_shown_as_far_as_it_is() -> None:
    class Described(BaseModel):
        pass

    Described.__doc__ = "caf\udce9"
    message("described")(Described)
    made, _ = asyncapi(settings())
    assert made["components"]["messages"]["described"]["description"] == "caf?"
    json.dumps(made, ensure_ascii=False).encode()


def test_the_version_of_the_document_changes_with_what_is_in_it() -> None:
    message("a")(Tree)
    first = document()["info"]["version"]
    assert document()["info"]["version"] == first
    message("b")(Line)
    assert document()["info"]["version"] != first


# --- JSON Schema ----------------------------------------------------------------------------------------


def test_all_contracts_are_one_json_schema_document_in_which_each_can_be_named() -> None:
    message("a", version="2.1")(Tree)
    message("b")(namesake())
    message("odd")(Odd)
    made, missing = bundle()
    assert missing == []
    assert made["$schema"] == DIALECT == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(made)
    for name, good, wrong in (
        ("urn:ackline:message:a:2.1", {"line": {"sku": "x"}}, {"line": {"text": "x"}}),
        ("urn:ackline:message:b:1", {"line": {"text": "x"}}, {"line": {"sku": "x"}}),
    ):
        validator = jsonschema.Draft202012Validator({**made, "$ref": name})
        validator.validate(good)
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(wrong)


def test_a_contract_without_a_schema_is_left_out_and_named() -> None:
    message("good")(Tree)
    message("bad.one")(Unschematic)
    made, [problem] = bundle()
    assert set(made["$defs"]) == {"good"}
    assert "bad.one" in str(problem)


def test_whatever_a_model_does_when_it_is_asked_for_its_schema_is_told_in_a_sentence() -> None:
    @message("bad.raises")
    class Raises(BaseModel):
        @classmethod
        def __get_pydantic_json_schema__(cls, *_: Any) -> Any:
            raise RuntimeError("no\nway" + "!" * 10_000)

    with pytest.raises(
        NoSchema, match=r"^bad.raises \(.*Raises\) has no JSON Schema: RuntimeError: no way!+$"
    ) as caught:
        schema_of(Raises)
    assert len(str(caught.value)) < 600
