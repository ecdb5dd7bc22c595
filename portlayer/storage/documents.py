"""JSON from strangers: every value is asked for by its type, and a wrong one says where it stands."""

from __future__ import annotations

import json
import re
from typing import NoReturn

from portlayer.errors import InvalidArgumentError

_UNFIT = re.compile("[\x00\ud800-\udfff]")
_MAX_INTEGER = 2**63 - 1


class Document:
    """A JSON value and its place. What is missing or null is empty."""

    def __init__(self, value: object, where: str) -> None:
        self._value = value
        self.where = where

    @classmethod
    def parse(cls, data: bytes, where: str) -> Document:
        """The document in `data`; InvalidArgumentError when it is no JSON."""
        try:
            return cls(json.loads(data), where)
        except (ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"{where} is not JSON: {error}") from error

    def __bool__(self) -> bool:
        return self._value is not None

    def __getitem__(self, key: str) -> Document:
        return Document(self._mapping().get(key), f"{self.where}: {key}")

    def text(self) -> str:
        if self._value is None:
            return ""
        if not isinstance(self._value, str):
            self._refuse("a string")
        return self._fit(self._value)

    def integer(self) -> int:
        """0.. 2^63-1."""
        if self._value is None:
            return 0
        # bool is an int to Python, not to JSON.
        if isinstance(self._value, bool) or not isinstance(self._value, int) or not 0 <= self._value <= _MAX_INTEGER:
            self._refuse("a whole number")
        return self._value

    def flag(self) -> bool:
        if not isinstance(self._value, bool | None):
            self._refuse("true or false")
        return bool(self._value)

    def items(self) -> list[Document]:
        if self._value is None:
            return []
        if not isinstance(self._value, list):
            self._refuse("a list")
        return [Document(item, f"{self.where}[{index}]") for index, item in enumerate(self._value)]

    def texts(self) -> tuple[str, ...]:
        """Of a list of strings; null stands for none."""
        return tuple(item.text() for item in self.items())

    def fields(self) -> dict[str, Document]:
        return {self._fit(key): Document(value, f"{self.where}: {key!r}") for key, value in self._mapping().items()}

    def text_fields(self) -> dict[str, str]:
        return {key: value.text() for key, value in self.fields().items()}

    def _mapping(self) -> dict[str, object]:
        if self._value is None:
            return {}
        if not isinstance(self._value, dict):
            self._refuse("an object")
        return self._value

    def _fit(self, text: str) -> str:
        if _UNFIT.search(text):
            raise InvalidArgumentError(f"{self.where} has a character that no text may have: {text[:40]!r}")
        return text

    def _refuse(self, wanted: str) -> NoReturn:
        raise InvalidArgumentError(f"{self.where} must be {wanted}, not {type(self._value).__name__}")
