"""Image references: the grammar of distribution/reference, and the short forms that people type.

    busybox == busybox:latest == docker.io/library/busybox:latest

Errors are InvalidArgumentError in Docker's words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import NoReturn

from portlayer.errors import InvalidArgumentError

_DEFAULT_DOMAIN = "docker.io"
_LEGACY_DOMAIN = "index.docker.io"
_DEFAULT_NAMESPACE = "library/"
_DEFAULT_TAG = "latest"
_MAX_NAME = 255

_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?", re.ASCII)
_PATH_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PATH_PART}(?:/{_PATH_PART})*", re.ASCII)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}", re.ASCII)
_IDENTIFIER = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ID_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})", re.ASCII)
SHA256 = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, order=True)
class Reference:
    """A normalised name, with a tag, a digest, both or neither."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        """Canonical: docker.io/library/busybox:latest."""
        return f"{self.domain}/{self.path}{self._suffix}"

    @property
    def familiar_name(self) -> str:
        """The name as Docker shows it, without tag or digest."""
        if self.domain != _DEFAULT_DOMAIN:
            return f"{self.domain}/{self.path}"
        rest = self.path.removeprefix(_DEFAULT_NAMESPACE)
        return self.path if "/" in rest else rest

    @property
    def familiar(self) -> str:
        """As Docker shows it: busybox:latest."""
        return self.familiar_name + self._suffix

    @property
    def name_only(self) -> bool:
        return not self.tag and not self.digest

    def with_default_tag(self) -> Reference:
        """Itself, or with :latest when it has neither tag nor digest."""
        return replace(self, tag=_DEFAULT_TAG) if self.name_only else self

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse(text: str) -> Reference:
    """A reference in any of its forms."""
    if _IDENTIFIER.fullmatch(text):
        message = f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
        raise InvalidArgumentError(f"invalid reference format: {message}")
    name, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        _refuse()
    domain, rest = _split_domain(name)
    path, colon, tag = rest.partition(":")
    if path != path.lower():
        _refuse(f"repository name ({path}) must be lowercase")
    if not _DOMAIN.fullmatch(domain) or not _PATH.fullmatch(path) or (colon and not _TAG.fullmatch(tag)):
        _refuse()
    if len(path) > _MAX_NAME:
        raise InvalidArgumentError(f"repository name must not be more than {_MAX_NAME} characters")
    return Reference(domain, path, tag, digest)


def parse_tag(text: str) -> Reference:
    """A name for an image: with its tag, never with a digest."""
    reference = parse(text)
    if reference.digest:
        raise InvalidArgumentError("refusing to create a tag with a digest reference")
    if reference.familiar_name == "sha256":
        raise InvalidArgumentError("refusing to create an ambiguous tag using digest algorithm as name")
    return reference.with_default_tag()


def id_prefix(text: str) -> str:
    """The hexadecimal digits of an image id or the start of one, "" when `text` cannot be that."""
    match = _ID_PREFIX.fullmatch(text)
    return match[1] if match else ""


def short_id(identifier: str) -> str:
    """The 12 digits by which people know an image or a container."""
    return identifier.removeprefix("sha256:")[:12]


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    is_domain = "." in first or ":" in first or first == "localhost" or first != first.lower()
    domain, remainder = (first, rest) if slash and is_domain else (_DEFAULT_DOMAIN, name)
    if domain == _LEGACY_DOMAIN:
        domain = _DEFAULT_DOMAIN
    if domain == _DEFAULT_DOMAIN and "/" not in remainder:
        remainder = _DEFAULT_NAMESPACE + remainder
    return domain, remainder


def _refuse(detail: str = "") -> NoReturn:
    raise InvalidArgumentError("invalid reference format" + (f": {detail}" if detail else ""))
