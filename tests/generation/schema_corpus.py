"""JSON schemas of every keyword that can be enforced, in the groups of the JSON Schema test suite, and those that
cannot be.
"""

from __future__ import annotations

from typing import Any

INTEGER, TEXT = {"type": "integer"}, {"type": "string"}


def closed(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


TREE = {"type": "object", "properties": {"leaf": INTEGER, "next": {"$ref": "#"}}, "additionalProperties": False}
SCHEMAS: dict[str, Any] = {
    "boolean schema": True,
    "type: string": TEXT,
    "type: integer": INTEGER,
    "type: number": {"type": "number"},
    "type: boolean": {"type": "boolean"},
    "type: null": {"type": "null"},
    "type: array": {"type": "array", "items": INTEGER},
    "type: object": {"type": "object"},
    "type: several": {"type": ["integer", "null", "boolean"]},
    "properties": closed(name=TEXT, age=INTEGER),
    "properties: names to escape": closed(**{'quo"te': INTEGER, "new\nline": INTEGER, "ключ": INTEGER, "": INTEGER}),
    "properties: that are keywords": closed(properties=INTEGER, dependencies=INTEGER, **{"$ref": TEXT}),
    "properties: nested": closed(a=closed(b=closed(c=INTEGER))),
    "required: some": closed(["b"], a=INTEGER, b=INTEGER, c=INTEGER),
    "required: not among the properties": {"type": "object", "required": ["x"], "additionalProperties": INTEGER},
    "additionalProperties: a schema": {"type": "object", "properties": {"a": TEXT}, "additionalProperties": INTEGER},
    "additionalProperties: false": {"type": "object", "additionalProperties": False},
    "patternProperties": {
        "type": "object",
        "patternProperties": {"^n_[a-z]{1,3}$": INTEGER, "^t_[a-z]{1,3}$": {"type": "boolean"}},
        "additionalProperties": False,
    },
    "minProperties: one": {"type": "object", "minProperties": 1, "additionalProperties": INTEGER},
    "maxProperties": {"type": "object", "maxProperties": 2, "additionalProperties": INTEGER},
    "items: false": {"type": "array", "items": False},
    "items: objects": {"type": "array", "items": closed(k=INTEGER), "maxItems": 3},
    "prefixItems": {"type": "array", "prefixItems": [TEXT, INTEGER], "items": False, "minItems": 2},
    "prefixItems: more may follow": {"type": "array", "prefixItems": [INTEGER], "items": {"type": "null"}},
    "minItems and maxItems": {"type": "array", "items": INTEGER, "minItems": 2, "maxItems": 4},
    "enum": {"enum": ["red", 5, None, True, {"a": [1, "x"]}, 'quo"te\\']},
    "const": {"const": {"deep": [1, {"x": None}], "é": "ü"}},
    "minLength and maxLength": {"type": "string", "minLength": 2, "maxLength": 5},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "pattern: anywhere": {"type": "string", "pattern": "ab+", "maxLength": 8},
    "format: date": {"type": "string", "format": "date"},
    "format: uuid": {"type": "string", "format": "uuid"},
    "format: ipv4": {"type": "string", "format": "ipv4"},
    "minimum and maximum": {"type": "integer", "minimum": -7, "maximum": 105},
    "exclusiveMinimum and exclusiveMaximum": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1.5},
    "multipleOf": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 1000},
    "anyOf": {"anyOf": [INTEGER, closed(a=TEXT), {"type": "null"}]},
    "oneOf: that exclude each other": {"oneOf": [closed(kind={"const": "a"}), closed(kind={"const": "b"}, n=INTEGER)]},
    "allOf": {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 9}]},
    "$defs": {"$defs": {"point": closed(x=INTEGER, y=INTEGER)}, "type": "array", "items": {"$ref": "#/$defs/point"}},
    "$ref: beside other keywords": {"$defs": {"n": INTEGER}, "$ref": "#/$defs/n", "minimum": 5},
    "$ref: recursion": TREE,
    "$ref: recursion through a list": {
        "$defs": {"node": closed(["v"], v=INTEGER, kids={"type": "array", "items": {"$ref": "#/$defs/node"}})},
        "$ref": "#/$defs/node",
    },
    "$ref: escaped names": {"$defs": {"a/b": INTEGER}, "$ref": "#/$defs/a~1b"},
    "annotations": {
        "title": "t",
        "description": "d",
        "default": 5,
        "examples": [1],
        "$comment": "c",
        "type": "integer",
    },
}

REFUSED: dict[str, Any] = {
    "not": {"not": TEXT},
    "if": {"if": TEXT, "then": INTEGER},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "contains": {"contains": TEXT},
    "propertyNames": {"propertyNames": {"maxLength": 3}},
    "dependentRequired": {"dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {"dependentSchemas": {"a": INTEGER}},
    "unevaluatedProperties": {"unevaluatedProperties": False},
    "unevaluatedItems": {"unevaluatedItems": False},
    "minProperties": {"type": "object", "minProperties": 2},
    "dependencies": {"dependencies": {"a": ["b"]}},
    "oneOf": {"oneOf": [INTEGER, {"type": "number"}]},
    "x-guidance": {"x-guidance": {"lenient": True}, "not": TEXT},
    "format": {"type": "string", "format": "unheard-of"},
}
