"""Static files, served by the web process itself from the packages they come in."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from whitenoise.middleware import WhiteNoiseMiddleware
from whitenoise.responders import StaticFile


class StaticFiles(WhiteNoiseMiddleware):
    """WhiteNoise, answering in one piece: Django reads a streamed file whole under ASGI too, and warns each time."""

    @staticmethod
    def serve(static_file: StaticFile, request: HttpRequest) -> HttpResponse:
        """Answer with a file, a part of it, or "not modified"."""
        streamed = WhiteNoiseMiddleware.serve(static_file, request)
        try:
            whole = HttpResponse(b"".join(streamed), status=streamed.status_code, headers=dict(streamed.headers))
        finally:
            streamed.close()
        return whole
