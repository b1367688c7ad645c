"""What of a message may be shown: the shape of its contract, and where in it secrets are.

Hidden is what the contract has as `SecretStr`, `SecretBytes` or `Secret`, and what it marks:
`Field(json_schema_extra={"x-masked": True})`. It is found through models, dataclasses, typed dictionaries, named
tuples, lists, mappings and unions, under every name that the contract reads it by.

In a contract that hides anything, what it does not describe is hidden too: a misspelt field, or a text where a model is
expected, may be the secret. What a union describes in several ways is hidden if one of them hides it.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from itertools import chain
from types import UnionType
from typing import Annotated, Any, ForwardRef, Literal, NewType, TypeVar

from pydantic import AliasChoices, AliasPath, BaseModel, JsonValue, RootModel, Secret, SecretBytes, SecretStr
from pydantic.fields import FieldInfo

from ackline.consumers.masking import MASK

#: What a field's `json_schema_extra` holds when it is hidden.
MARK = "x-masked"

_SECRET = (Secret, SecretStr, SecretBytes)


class _Hidden:
    """Stands for the annotation of what is hidden."""


class _Undescribed:
    """Stands for the annotation of what the contract does not describe, and so does not read."""


class _Within(typing.NamedTuple):
    """What a field reads at *path* below the name that it is under."""

    path: tuple[str | int, ...]
    annotation: Any


class Shape:
    """How a place in a message may look, by all the annotations that may describe it."""

    def __init__(self, annotations: Iterable[Any]) -> None:
        """annotations: types, as pydantic takes them. They are looked into as deep as somebody asks."""
        #: Whether all of it is hidden.
        self.is_hidden = False
        self._is_secret = False  # because the contract says so
        self._is_open = False  # anything may be there, and be shown
        self._fields: dict[str, list[Any]] = {}
        self._extras: list[Any] = []  # of a model: what has no field's name
        self._items: list[Any] = []  # of a named tuple, or of a list by its index
        self._within: list[Any] = []  # of a list, or a mapping
        self._members: dict[str | None, Shape] = {}
        left = list(annotations)
        while left:
            self._take(left.pop(), left)

    def at(self, name: str) -> Shape:
        """The shape of the member of that name, or of the item that a JSON Pointer calls so."""
        known = name if name in self._fields else None
        found = self._members.get(known)
        if found is None:
            found = self._members[known] = self._of(self._fields.get(name, self._extras) + self._items)
        return found

    @cached_property
    def item(self) -> Shape:
        """The shape of the items of a list."""
        return self._of(self._items)

    @property
    def shows_text(self) -> bool:
        """Whether a text, or a number, that is there is shown."""
        return self._is_open and not self.is_hidden

    def _of(self, described: list[Any]) -> Shape:
        annotations = described + self._within
        if self.is_hidden or not (annotations or self._is_open):
            return _shape(_Hidden if self._is_secret else _Undescribed)
        return _shape(*(annotations or [Any]))

    def annotations(self) -> Iterator[Any]:
        """Those of what may be within."""
        return chain(*self._fields.values(), self._extras, self._items, self._within)

    def shown(self, document: Any) -> Any:
        """*document* with `MASK` in place of what is hidden; null stays."""
        if document is None:
            return None
        if self.is_hidden:
            return MASK
        if isinstance(document, dict):
            return {name: self.at(name).shown(inner) for name, inner in document.items()}
        if isinstance(document, list):
            return [self.item.shown(inner) for inner in document]
        return document if self.shows_text else MASK

    def secrets(self, document: Any) -> Iterator[Any]:
        """What `shown` masks, but for what the contract does not describe, and so does not read."""
        if document is None or (self.is_hidden and not self._is_secret):
            return
        if self._is_secret or not (self._is_open or isinstance(document, (dict, list))):
            yield document
        elif isinstance(document, dict):
            for name, inner in document.items():
                yield from self.at(name).secrets(inner)
        elif isinstance(document, list):
            for inner in document:
                yield from self.item.secrets(inner)

    def _hide(self) -> None:
        self.is_hidden = self._is_secret = True

    def _take(self, annotation: Any, left: list[Any]) -> None:
        """Note what *annotation* says; into *left* go those that say it in its place."""
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if annotation in (None, type(None), ...):
            return
        if annotation is _Undescribed:
            self.is_hidden = True
        elif annotation is _Hidden or isinstance(annotation, (str, ForwardRef)):  # of an unknown type: it may be one
            self._hide()
        elif isinstance(annotation, _Within):
            self._take_field(annotation.path, annotation.annotation)
        elif annotation in (Any, JsonValue) or origin is Literal:
            self._is_open = True
        elif origin is Annotated:
            if any(isinstance(found, FieldInfo) and _is_marked(found) for found in arguments[1:]):
                self._hide()
            left.append(arguments[0])
        elif (alias := origin or annotation) and hasattr(alias, "__value__"):  # `type X = ...`
            left += [alias.__value__, *arguments]
        elif isinstance(annotation, NewType):
            left.append(annotation.__supertype__)
        elif isinstance(annotation, TypeVar):
            left += annotation.__constraints__ or [annotation.__bound__ or Any]
        elif isinstance(origin or annotation, type) and origin is not UnionType:
            self._take_class(origin or annotation, arguments, left)
        else:  # unions, and forms such as `Required`
            left += arguments or [Any]

    def _take_class(self, cls: type, arguments: tuple[Any, ...], left: list[Any]) -> None:
        if issubclass(cls, _SECRET):
            self._hide()
        elif issubclass(cls, RootModel):
            left.append(_annotation(cls.model_fields["root"]))
        elif issubclass(cls, Mapping) and arguments:
            if Shape(arguments[:1]).is_hidden:
                self._hide()
            self._within += arguments[1:]
        elif _has_fields(cls):
            self._within += arguments
            self._take_fields(cls)
        else:
            self._within += arguments
            self._is_open |= not arguments

    def _take_fields(self, cls: type) -> None:
        described: Mapping[str, FieldInfo] | None = getattr(cls, "__pydantic_fields__", None)
        if described is not None:
            for name, field in described.items():
                for path in _paths(name, field):
                    self._take_field(path, _annotation(field))
            if issubclass(cls, BaseModel) and cls.model_config.get("extra") == "allow":
                self._extras.append(_extra(cls))
            return
        try:
            hints = typing.get_type_hints(cls, include_extras=True)
        except NameError:  # defined in a function, where pydantic could look it up: any of it may be hidden
            self._hide()
            return
        for name, hint in hints.items():
            self._take_field((name,), hint)
        if issubclass(cls, tuple):
            self._items += hints.values()

    def _take_field(self, path: tuple[str | int, ...], annotation: Any) -> None:
        first, *rest = path
        found = _Within(tuple(rest), annotation) if rest else annotation
        if isinstance(first, int):  # of an alias that is a path
            self._items.append(found)
        else:
            self._fields.setdefault(first, []).append(found)


#: By the identities of their annotations, each of which is held here, so that a contract that holds itself has an end.
_shapes: dict[tuple[int, ...], tuple[tuple[Any, ...], Shape]] = {}


def _shape(*annotations: Any) -> Shape:
    key = tuple(map(id, annotations))
    found = _shapes.get(key)
    if found is None:
        found = _shapes[key] = annotations, Shape(annotations)
    return found[1]


@cache
def shape_of(model: type[BaseModel]) -> Shape | None:
    """The shape of messages of *model*; None when nothing of them is hidden."""
    seen: set[int] = set()
    left: list[Any] = [model]
    while left:
        annotation = left.pop()
        if id(annotation) in seen:
            continue
        shape = _shape(annotation)  # which holds it, so that no id is used again
        if shape.is_hidden:
            return _shape(model)
        seen.add(id(annotation))
        left.extend(shape.annotations())
    return None


def _annotation(field: FieldInfo) -> Any:
    return _Hidden if _is_marked(field) else field.annotation


def _is_marked(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get(MARK) is True


def _paths(name: str, field: FieldInfo) -> Iterator[tuple[str | int, ...]]:
    """Where the contract reads a field: under its own name, whether or not an alias replaces that, and its aliases."""
    alias = field.validation_alias
    for choice in (name, field.alias, *(alias.choices if isinstance(alias, AliasChoices) else [alias])):
        if isinstance(choice, AliasPath):
            yield tuple(choice.path)
        elif choice is not None:
            yield (choice,)


def _extra(model: type[BaseModel]) -> Any:
    """What a model says of values that have no field's name."""
    for cls in model.__mro__[: model.__mro__.index(BaseModel)]:
        found = inspect.get_annotations(cls).get("__pydantic_extra__")
        if found is not None:
            return found if isinstance(found, str) else typing.get_args(found)[-1]
    return Any


def _has_fields(cls: type) -> bool:
    return (
        issubclass(cls, BaseModel)
        or dataclasses.is_dataclass(cls)
        or hasattr(cls, "__required_keys__")  # a TypedDict, typing's or typing_extensions'
        or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
    )
