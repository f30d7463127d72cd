"""Torpor's REST API by its description: what a server answers is compared with it, in every test that asks one."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

DESCRIPTION = Path(__file__).parents[1] / "jupyter_ext" / "torpor_jupyter" / "server" / "api.yaml"


@cache
def description() -> Any:
    """The description, as YAML has it."""
    return yaml.safe_load(DESCRIPTION.read_text(encoding="utf-8"))


def template(path: str) -> str:
    """The path of the description that a request's path belongs to."""
    plain = "/" + path.partition("?")[0]
    for known in description()["paths"]:
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", known), plain):
            return str(known)
    raise AssertionError(f"the description does not know {plain}")


def check(method: str, path: str, status: int, body: Any) -> None:
    """Compare an answer with the description."""
    answers = description()["paths"][template(path)][method.lower()]["responses"]
    answer = answers.get(str(status), answers["default"])
    if status < 400:
        assert str(status) in answers, f"{method} {path} is not described to answer {status}"
    where = _resolved(answer)["content"]["application/json"]["schema"]
    resource = DRAFT202012.create_resource({**where, "components": description()["components"]})
    registry: Registry[Any] = Registry().with_resource("urn:api", resource)
    Draft202012Validator({"$ref": "urn:api"}, registry=registry).validate(body)


def _resolved(node: Any) -> Any:
    while "$ref" in node:
        found: Any = description()
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node
