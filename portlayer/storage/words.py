"""Words of a Dockerfile instruction: quotes, escapes and variables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NoReturn

from portlayer.errors import InvalidArgumentError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+")
_BRACED = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*|[0-9]+)(?P<operation>:?[-+?])?")


def split(text: str) -> list[str]:
    """Words as they stand, quotes and all: white space inside quotes or behind a backslash divides nothing."""
    words: list[str] = []
    current, quote, escaped = "", "", False
    for character in text:
        if escaped:
            escaped = False
        elif character == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character.isspace():
            words += [current] if current else []
            current = ""
            continue
        current += character
    return words + ([current] if current else [])


def expand(word: str, environment: Mapping[str, str]) -> str:
    """The word's value: without its quotes, escapes undone, variables put in."""
    return _Expander(word, environment).value()


def expand_all(words: list[str], environment: Mapping[str, str]) -> list[str]:
    return [expand(word, environment) for word in words]


class _Expander:
    def __init__(self, word: str, environment: Mapping[str, str]) -> None:
        self._word = word
        self._environment = environment
        self._position = 0

    def value(self) -> str:
        parts = []
        while self._position < len(self._word):
            character = self._take()
            if character == "'":
                parts.append(self._single_quoted())
            elif character == '"':
                parts.append(self._double_quoted())
            elif character == "$":
                parts.append(self._variable())
            elif character == "\\":
                parts.append(self._take())
            else:
                parts.append(character)
        return "".join(parts)

    def _take(self) -> str:
        character = self._word[self._position : self._position + 1]
        self._position += 1
        return character

    def _single_quoted(self) -> str:
        end = self._word.find("'", self._position)
        if end < 0:
            self._refuse("unexpected end of statement while looking for matching single-quote")
        text = self._word[self._position : end]
        self._position = end + 1
        return text

    def _double_quoted(self) -> str:
        parts = []
        while (character := self._take()) != '"':
            if not character:
                self._refuse("unexpected end of statement while looking for matching double-quote")
            if character == "$":
                parts.append(self._variable())
            elif character == "\\":
                following = self._take()
                parts.append(following if following in '"$\\' else "\\" + following)
            else:
                parts.append(character)
        return "".join(parts)

    def _variable(self) -> str:
        if self._word[self._position : self._position + 1] == "{":
            return self._braced()
        match = _VARIABLE.match(self._word, self._position)
        if not match:
            return "$"
        self._position = match.end()
        return self._environment.get(match[0], "")

    def _braced(self) -> str:
        end = self._closing_brace()
        inner = self._word[self._position + 1 : end]
        self._position = end + 1
        match = _BRACED.match(inner)
        if not match or (not match["operation"] and match.end() != len(inner)):
            self._refuse(f"unsupported modifier in substitution: ${{{inner}}}")
        value = self._environment.get(match["name"])
        operation = match["operation"]
        if not operation:
            return value or ""
        rest = expand(inner[match.end() :], self._environment)
        present = bool(value) if operation.startswith(":") else value is not None
        if operation.endswith("+"):
            return rest if present else ""
        if not present and operation.endswith("?"):
            self._refuse(f"{match['name']}: {rest or 'is not allowed to be unset'}")
        return value or "" if present else rest

    def _closing_brace(self) -> int:
        depth = 0
        for index in range(self._position, len(self._word)):
            depth += {"{": 1, "}": -1}.get(self._word[index], 0)
            if not depth:
                return index
        self._refuse("syntax error: missing '}'")

    def _refuse(self, reason: str) -> NoReturn:
        raise InvalidArgumentError(f"failed to process {json.dumps(self._word)}: {reason}")
