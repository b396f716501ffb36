"""Reads protobuf's text format, as far as config.pbtxt uses it: field -> list of its values."""

from __future__ import annotations

import json
import re
from typing import Any

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')


def parsed(text: str) -> dict[str, list[Any]]:
    tokens = TOKEN.findall(text)
    message = _message(tokens)
    assert not tokens, tokens[:5]
    return message


def _message(tokens: list[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    while tokens and tokens[0] != "}":
        field = tokens.pop(0)
        assert re.fullmatch(r"[a-z_]+", field), field
        values = found.setdefault(field, [])
        if tokens[0] == "{":
            tokens.pop(0)
            values.append(_message(tokens))
            assert tokens.pop(0) == "}"
            continue
        assert tokens.pop(0) == ":"
        if tokens[0] == "[":
            tokens.pop(0)
            while tokens[0] != "]":
                values.append(_scalar(tokens.pop(0)))
                if tokens[0] == ",":
                    tokens.pop(0)
            tokens.pop(0)
        else:
            values.append(_scalar(tokens.pop(0)))
    return found


def _scalar(token: str) -> Any:
    if token[0] in '"-0123456789' or token in ("true", "false"):
        return json.loads(token)
    return token  # a name of an enum
