"""JSON of the REST API, into which text that is JSON already goes as it is (`msgspec.Raw`)."""

from __future__ import annotations

from typing import Any

import msgspec
from django.utils.functional import Promise
from rest_framework.renderers import JSONRenderer
from rest_framework.utils.encoders import JSONEncoder


def _plain(value: Any) -> Any:
    if isinstance(value, str):  # of a subclass, such as an error's detail
        return str.__str__(value)
    if isinstance(value, Promise):
        return str(value)
    return JSONEncoder().default(value)


_encoder = msgspec.json.Encoder(enc_hook=_plain)


class Json(JSONRenderer):
    """Encodes by msgspec: keeps a stored number's digits, and takes a tenth of the time."""

    def render(self, data: Any, accepted_media_type: Any = None, renderer_context: Any = None) -> bytes:
        """Return `data` as JSON, and nothing for None."""
        return b"" if data is None else _encoder.encode(data)
