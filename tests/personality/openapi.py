"""Validates answers against Docker's own description of its API (Swagger 2, beside this file)."""

from __future__ import annotations

import functools
import gzip
from pathlib import Path
from typing import Any

import jsonschema
import yaml

_DESCRIPTION = Path(__file__).with_name("docker-api-v1.50.yaml.gz")


@functools.cache
def description() -> dict[str, Any]:
    """The whole document; loading takes a second or two, once."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document: dict[str, Any] = yaml.load(gzip.decompress(_DESCRIPTION.read_bytes()), Loader=loader)
    return document


def endpoints() -> list[tuple[str, str]]:
    """Every (method, path template) that the API has."""
    return [
        (method.upper(), path)
        for path, operations in description()["paths"].items()
        for method in operations
        if method in {"get", "head", "post", "put", "delete"}
    ]


def validate(path: str, method: str, status: int, body: object, *, nulls: bool = False) -> None:
    """Fails when `body` is not what the description says for the path template ("/images/{name}/json") and status.

    With `nulls`, any list or map may be null: dockerd answers so about containers where its description does not say
    it, and clients tell null from empty there.
    """
    operation = description()["paths"][path][method.lower()]
    responses = operation["responses"]
    assert status in responses or str(status) in responses, f"{method} {path} has no status {status}"
    response = responses.get(status) or responses.get(str(status))
    if "schema" in response:
        _check(response["schema"], body, f"{method} {path} {status}", nulls=nulls)


def validate_definition(name: str, body: object, *, nulls: bool = False) -> None:
    """Fails when `body` is not one of the description's definitions, such as EventMessage."""
    _check({"$ref": f"#/definitions/{name}"}, body, name, nulls=nulls)


def _check(schema: dict[str, Any], body: object, what: str, *, nulls: bool) -> None:
    validator = jsonschema.Draft4Validator(_convert(schema, (), nulls))
    errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(body)]
    assert not errors, f"{what}: " + "; ".join(errors)


def _convert(schema: Any, within: tuple[str, ...], nulls: bool) -> Any:
    """Swagger's dialect as JSON schema: references resolved, x-nullable obeyed, unknown formats dropped.

    Where a definition holds itself, the inner one is taken for anything.
    """
    if isinstance(schema, list):
        return [_convert(each, within, nulls) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        if name in within:
            return {}
        converted = _convert(description()["definitions"][name], (*within, name), nulls)
        return _nullable(converted) if schema.get("x-nullable") else converted
    converted = {
        key: {name: _convert(each, within, nulls) for name, each in value.items()}
        if key in {"properties", "definitions"}
        else _convert(value, within, nulls)
        for key, value in schema.items()
        if key in {"type", "properties", "items", "required", "enum", "allOf", "additionalProperties", "definitions"}
    }
    container = schema.get("type") == "array" or "additionalProperties" in schema
    return _nullable(converted) if schema.get("x-nullable") or (nulls and container) else converted


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [{"type": "null"}, schema]}
