"""Static files come from the packages themselves, in one piece, under ASGI too."""

import asyncio

import pytest
from django.test import AsyncClient

FILES = [
    "/static/unfold/css/styles.css",
    "/static/unfold/js/alpine/alpine.js",
    "/static/unfold/fonts/material-symbols/Material-Symbols-Outlined.woff2",
    "/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js",
    "/static/cdp/admin.css",
]


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_answered_whole(path):
    answer = asyncio.run(AsyncClient().get(path))
    assert answer.status_code == 200
    assert not answer.streaming
    assert len(answer.content) == int(answer.headers["Content-Length"]) > 1000


def test_a_part_of_a_file_can_be_asked_for(client):
    whole = client.get(FILES[0]).content
    part = client.get(FILES[0], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole[10:20])


def test_a_file_that_has_not_changed_is_not_sent_again(client):
    first = client.get(FILES[0])
    again = client.get(FILES[0], headers={"If-Modified-Since": first.headers["Last-Modified"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_file_that_is_not_there_is_404(client):
    assert client.get("/static/nothing.css").status_code == 404


def test_the_head_of_a_file_has_its_length_and_no_body(client):
    head = client.head(FILES[0])
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["Content-Length"]) == len(client.get(FILES[0]).content)
