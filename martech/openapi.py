"""What the API's description says beyond Django's views: the tracking API, and the form of errors."""

from __future__ import annotations

from typing import Any

CALLS = {
    "track": "Something that a person did",
    "identify": "Who a person is, and their traits",
    "page": "A page that was looked at",
    "screen": "A screen of an app that was looked at",
    "group": "An account that a person belongs to",
    "alias": "Two ids of one person",
}
_TEXT, _OBJECT = {"type": "string"}, {"type": "object", "additionalProperties": {}}
_MESSAGE = {
    "type": "object",
    "description": "A message of the Segment HTTP API; `userId` or `anonymousId` is required.",
    "properties": {
        "userId": _TEXT,
        "anonymousId": _TEXT,
        "messageId": {**_TEXT, "description": "By which a repetition is recognised"},
        "timestamp": {**_TEXT, "format": "date-time"},
        "sentAt": {**_TEXT, "format": "date-time"},
        "context": _OBJECT,
        "integrations": _OBJECT,
        "event": {**_TEXT, "description": "track: the event's name"},
        "name": {**_TEXT, "description": "page and screen: their name"},
        "properties": {**_OBJECT, "description": "track, page and screen"},
        "traits": {**_OBJECT, "description": "identify and group"},
        "groupId": {**_TEXT, "description": "group"},
        "previousId": {**_TEXT, "description": "alias: the id to join to `userId`"},
    },
    "additionalProperties": {},
}
_BATCH = {
    "type": "object",
    "required": ["batch"],
    "properties": {
        "batch": {
            "type": "array",
            "items": {
                "allOf": [
                    {"$ref": "#/components/schemas/Message"},
                    {
                        "type": "object",
                        "required": ["type"],
                        "properties": {"type": {"type": "string", "enum": sorted(CALLS)}},
                    },
                ]
            },
        },
        "context": {**_OBJECT, "description": "Merged into each item's"},
        "integrations": {**_OBJECT, "description": "Merged into each item's"},
        "sentAt": {**_TEXT, "format": "date-time"},
    },
}
_ACCEPTED = {"type": "object", "required": ["success"], "properties": {"success": {"type": "boolean", "enum": [True]}}}
_PROBLEM = {
    "type": "object",
    "description": "RFC 9457",
    "required": ["type", "title", "status", "detail", "code", "message"],
    "properties": {
        "type": _TEXT,
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": _TEXT,
        "code": {**_TEXT, "description": "Stable, for programs"},
        "message": {**_TEXT, "description": "The cause, and the next step"},
        "errors": {**_OBJECT, "description": "What is wrong, by field"},
    },
}
_POSITION = {
    "in": "query",
    "name": "position",
    "schema": {"type": "string", "enum": ["1"]},
    "description": "Answer the header `X-Martech-Position`, which reads take as `min_position`",
}
_REFUSALS = {
    "400": "The message or the body cannot be used; `code` says why",
    "401": "The write key is not known",
    "413": "The body is too large",
    "429": "Too much at once: try again after `Retry-After` seconds",
    "503": "The log is away, nothing was accepted: try again after `Retry-After` seconds",
}


def complete(result: dict[str, Any], generator: Any, request: Any, public: bool) -> dict[str, Any]:
    """Add the collector's paths and the problem that every operation may answer; a hook of drf-spectacular."""
    schemas = result["components"].setdefault("schemas", {})
    schemas |= {"Problem": _PROBLEM, "Message": _MESSAGE, "Batch": _BATCH, "Accepted": _ACCEPTED}
    for path in result["paths"].values():
        for operation in path.values():
            operation["summary"] = operation["description"].partition("\n")[0].removesuffix(".")
            operation["responses"].setdefault("default", _problem("An error"))
    schemes = result["components"].setdefault("securitySchemes", {})
    schemes["write_key"] = {
        "type": "http",
        "scheme": "basic",
        "description": "A source's write key as the user name, with an empty password",
    }
    for call, meaning in CALLS.items():
        result["paths"][f"/v1/{call}"] = {"post": _tracking(call, f"{meaning}.", "Message")}
    result["paths"]["/v1/batch"] = {"post": _tracking("batch", "Several messages, up to 4 MiB.", "Batch")}
    result["paths"]["/v1/import"] = {"post": _tracking("import", "Several messages of the past.", "Batch")}
    return result


def _tracking(call: str, meaning: str, schema: str) -> dict[str, Any]:
    accepted = {"schema": {"$ref": "#/components/schemas/Accepted"}}
    return {
        "operationId": call,
        "summary": meaning.removesuffix("."),
        "description": "Answered when every event is durable in the log.",
        "tags": ["tracking"],
        "security": [{"write_key": []}],
        "parameters": [_POSITION],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
        },
        "responses": {
            "200": {"description": "Accepted", "content": {"application/json": accepted}},
            **{status: _problem(cause) for status, cause in _REFUSALS.items()},
        },
    }


def _problem(description: str) -> dict[str, Any]:
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {"description": description, "content": {"application/problem+json": schema}}
