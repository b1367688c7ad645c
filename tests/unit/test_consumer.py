"""`@consumer`: what it takes from a function, and what it says when it cannot."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Annotated, Any, Optional, Union

import pytest
from pydantic import BaseModel

from ackline.consumers import Context, consumer, exponential, fixed, registered
from ackline.consumers.consumer import load_consumers, queues
from ackline.infra.errors import ConfigurationError
from ackline.infra.settings import Settings
from ackline.producer import message


@message("test.consumer.placed")
class Placed(BaseModel):
    id: str


@message("test.consumer.paid")
class Paid(BaseModel):
    id: str


class NoMessage(BaseModel):
    id: str


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of each test's own, so that no other test sees its consumers."""
    # By name: the package exports the decorator under the name of its module.
    monkeypatch.setattr(importlib.import_module("ackline.consumers.consumer"), "_consumers", {})


def _refusal(function: Callable[..., Any], name: str = "billing") -> str:
    with pytest.raises(ConfigurationError) as refused:
        consumer(name)(function)
    assert registered() == {}
    return str(refused.value)


def test_a_function_becomes_the_handler_of_a_queue_and_stays_as_it_is() -> None:
    def charge(order: Placed) -> str:
        return order.id

    assert consumer("billing")(charge) is charge
    found = registered()["billing"]
    assert (found.name, found.handler, dict(found.types)) == ("billing", charge, {"test.consumer.placed": Placed})
    assert (found.takes_context, found.is_async, found.retry) == (False, False, exponential())


def test_a_policy_and_a_context_are_taken_along() -> None:
    @consumer("billing", retry=fixed(attempts=2))
    def charge(order: Placed, ctx: Context) -> None: ...

    found = registered()["billing"]
    assert (found.takes_context, found.retry) == (True, fixed(attempts=2))


def test_a_second_parameter_needs_no_annotation() -> None:
    @consumer("billing")
    def charge(order: Placed, ctx) -> None: ...  # type: ignore[no-untyped-def]

    assert registered()["billing"].takes_context


def test_an_async_handler_is_known_for_one() -> None:
    @consumer("billing")
    async def charge(order: Placed) -> None: ...

    assert registered()["billing"].is_async


def test_a_union_of_messages_binds_the_queue_to_all_their_types() -> None:
    @consumer("audit")
    def audit(event: Placed | Paid) -> None: ...

    @consumer("audit-old-style")
    def audit_too(event: Union[Placed, Paid]) -> None: ...  # noqa: UP007 - the older spelling

    for name in ("audit", "audit-old-style"):
        assert registered()[name].queue.types == ("test.consumer.paid", "test.consumer.placed")


def test_an_annotated_message_is_the_message() -> None:
    @consumer("audit")
    def audit(event: Annotated[Placed, "the one from the shop"]) -> None: ...

    assert registered()["audit"].queue.types == ("test.consumer.placed",)


def test_the_same_function_imported_again_is_no_second_consumer() -> None:
    def make() -> Callable[..., Any]:
        @consumer("billing")
        def charge(order: Placed) -> None: ...

        return charge

    make()
    again = make()
    assert registered()["billing"].handler is again


def test_a_taken_name_is_refused_with_who_has_it() -> None:
    @consumer("billing")
    def charge(order: Placed) -> None: ...

    def other(order: Paid) -> None: ...

    with pytest.raises(ConfigurationError, match=r"The consumer 'billing' is already .*charge; take another name\."):
        consumer("billing")(other)
    assert registered()["billing"].handler is charge


@pytest.mark.parametrize("name", ["", "ackline.mine", "amq.mine", "two\nlines", "x" * 201, "ü" * 101])
def test_a_name_that_cannot_name_a_queue_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be the name of a consumer"):
        consumer(name)


def test_a_forgotten_name_is_a_sentence() -> None:
    def charge(order: Placed) -> None: ...

    with pytest.raises(ConfigurationError, match=r"Please give the consumer a name: @consumer\('billing'\)"):
        consumer(charge)  # type: ignore[arg-type]


def test_a_handler_without_parameters_or_with_three_is_refused() -> None:
    def none() -> None: ...

    def three(order: Placed, ctx: Context, more: int) -> None: ...

    for function in (none, three):
        assert _refusal(function) == "The handler of 'billing' takes a message and, if it likes, a Context."


def test_parameters_that_cannot_be_given_by_position_are_refused() -> None:
    def by_name(order: Placed, *, ctx: Context) -> None: ...

    def many(*orders: Placed) -> None: ...

    def named(order: Placed, **more: Context) -> None: ...

    for function in (by_name, many, named):
        assert "takes a message and, if it likes, a Context" in _refusal(function)


def test_a_second_parameter_that_is_no_context_is_refused() -> None:
    def charge(order: Placed, more: int) -> None: ...

    assert _refusal(charge) == "The second parameter of the handler of 'billing' must be a Context."


def test_an_annotation_that_names_no_message_is_refused_and_named() -> None:
    def missing(order) -> None: ...  # type: ignore[no-untyped-def]

    def plain(order: dict[str, str]) -> None: ...

    def model(order: NoMessage) -> None: ...

    def maybe(order: Optional[Placed]) -> None: ...  # noqa: UP045 - the older spelling

    def several(orders: tuple[Placed]) -> None: ...

    for function in (missing, plain, model, maybe, several):
        assert "must be annotated with a @message model, a union of them, or bytes, or a list of those, not " in (
            _refusal(function)
        )
    assert "NoMessage" in _refusal(model)


def test_an_annotation_that_cannot_be_resolved_is_a_sentence() -> None:
    def charge(order: Unknown) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    said = _refusal(charge)
    assert said.startswith("The annotations of the handler of 'billing' cannot be read: name 'Unknown' is not defined")


def test_the_topology_of_an_application_is_that_of_its_consumers() -> None:
    @consumer("billing")
    def charge(order: Placed) -> None: ...

    settings = Settings(app=("json",))
    assert list(load_consumers(settings)) == ["billing"]
    (queue,) = queues(settings)
    assert (queue.name, queue.types) == ("billing", ("test.consumer.placed",))


def test_an_application_that_cannot_be_found_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"The module 'no\.such\.app' of the application"):
        load_consumers(Settings(app=("no.such.app",)))
