"""What a request's body may be: labels, encodings, sizes."""

import gzip
import json
import zlib

import pytest

from cdp.collector.tracking import HELD_BYTES
from tests.collecting import SERVER, basic, collecting

pytestmark = pytest.mark.anyio

BATCH = json.dumps({"batch": [{"type": "track", "event": "Signed Up", "userId": "u1"}]}).encode()
LIMIT = 4 * 2**20


def raw_deflate(data):
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    "label", ["application/json", "text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", None]
)
async def test_the_body_is_json_whatever_its_label_says(collector, label):
    answer = await collector.post("/v1/batch", BATCH, headers={"Content-Type": label} if label else {})
    assert answer.status_code == 200
    assert len(collector.logged()) == 1


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("identity", bytes),
        ("gzip", lambda data: gzip.compress(data[:20]) + gzip.compress(data[20:])),
        ("gzip", lambda data: gzip.compress(data) + b"\0\0"),
    ],
)
async def test_compressed_bodies_are_read(collector, encoding, compress):
    headers = {"Content-Encoding": encoding, "Content-Type": "application/x-www-form-urlencoded"}
    assert (await collector.post("/v1/batch", compress(BATCH), headers=headers)).status_code == 200
    assert [one.message["userId"] for one in collector.logged()] == ["u1"]


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "nonsense"])
async def test_other_encodings_are_415(collector, encoding):
    answer = await collector.post("/v1/batch", BATCH, headers={"Content-Encoding": encoding})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_encoding")


@pytest.mark.parametrize("damaged", [BATCH, gzip.compress(BATCH)[:-9], gzip.compress(BATCH) + b"more", b""])
async def test_a_damaged_gzip_body_is_400(collector, damaged):
    answer = await collector.post("/v1/batch", damaged, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
    assert collector.logged() == []


async def test_a_gzip_bomb_stops_at_the_limit(collector):
    bomb = gzip.compress(bytes(100 * 2**20))
    answer = await collector.post("/v1/batch", bomb, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")
    members = gzip.compress(bytes(LIMIT // 2)) * 4
    answer = await collector.post("/v1/batch", members, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 413


def padded(size):
    """Return a batch of exactly `size` bytes with one small event."""
    return BATCH[:-1] + b" " * (size - len(BATCH)) + b"}"


async def test_the_limit_is_four_mebibytes(collector):
    assert (await collector.post("/v1/batch", padded(LIMIT))).status_code == 200
    answer = await collector.post("/v1/batch", padded(LIMIT + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")
    whole = gzip.compress(padded(LIMIT))
    assert (await collector.post("/v1/batch", whole, headers={"Content-Encoding": "gzip"})).status_code == 200
    more = gzip.compress(padded(LIMIT + 1))
    assert (await collector.post("/v1/batch", more, headers={"Content-Encoding": "gzip"})).status_code == 413
    assert len(collector.logged()) == 2


async def test_a_body_without_a_length_is_cut_off_at_the_limit_too(collector):
    async def endless():
        for _ in range(80):
            yield bytes(64 * 1024)

    answer = await collector.client.post("/v1/batch", content=endless(), headers=basic(SERVER))
    assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")


async def test_a_real_batch_of_100_large_events_passes(collector):
    items = [
        {"type": "track", "event": "e", "userId": f"u{n}", "properties": {"text": "x" * 31_000}} for n in range(100)
    ]
    assert (await collector.post("/v1/batch", {"batch": items})).status_code == 200
    assert sorted(one.message["userId"] for one in collector.logged()) == sorted(item["userId"] for item in items)


async def test_bytes_that_wait_are_bounded():
    # As it came, cut into events, and what an event takes beside.
    held = 2 * len(BATCH) + HELD_BYTES
    async with collecting(collector_queue_bytes=held) as collector:
        assert (await collector.post("/v1/batch", BATCH)).status_code == 200
        collector.application._room.take(1)
        answer = await collector.post("/v1/batch", BATCH)
        assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
        assert 1 <= int(answer.headers["retry-after"]) <= 300
        # What was refused holds no room.
        collector.application._room.give(1)
        assert (await collector.post("/v1/batch", BATCH)).status_code == 200
        assert collector.application._room.held == 0


async def test_what_a_body_is_decompressed_to_takes_room_too():
    body = gzip.compress(BATCH)
    async with collecting(collector_queue_bytes=len(body) + 2 * len(BATCH) + HELD_BYTES) as collector:
        assert (await collector.post("/v1/batch", body, headers={"Content-Encoding": "gzip"})).status_code == 200
        collector.application._room.take(1)
        assert (await collector.post("/v1/batch", body, headers={"Content-Encoding": "gzip"})).status_code == 429


async def test_what_never_fits_is_not_sent_again_and_again():
    async with collecting(collector_queue_bytes=2 * len(BATCH) + HELD_BYTES) as collector:
        answer = await collector.post("/v1/batch", BATCH + b" ")
    assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")


async def test_a_context_takes_room_for_each_partition_that_it_goes_to():
    items = [{"type": "page", "userId": f"u{number}"} for number in range(20)]
    body = json.dumps({"batch": items, "context": {"text": "x" * 5000}}).encode()
    async with collecting() as collector:
        assert (await collector.post("/v1/batch", body)).status_code == 200
        partitions = len({one.partition for one in collector.logged()})
        context = len(collector.logged()[0].delivery.context)
    assert (partitions, context) == (8, 5012)
    held = 2 * len(body) + 20 * HELD_BYTES + 7 * context
    async with collecting(collector_queue_bytes=held) as collector:
        assert (await collector.post("/v1/batch", body)).status_code == 200
        collector.application._room.take(1)
        answer = await collector.post("/v1/batch", body)
        assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
        assert collector.application._room.held == 1
