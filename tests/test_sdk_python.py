"""The stock Python SDKs against the real server, with nothing but the host changed."""

import json
import subprocess
import sys

import pytest

from tests.conftest import copied
from tests.sdks.bed import HERE, STORY, VIEWS, heard, libraries, person, platform

SDKS = {
    "segment-analytics-python 2.4.0": "segment.analytics",
    "segment-analytics-python 2.3.4": "segment.analytics",
    "rudder-sdk-python 2.1.9": "rudderstack.analytics",
}


@pytest.fixture(scope="session")
def older_segment(tmp_path_factory):
    """Return where segment-analytics-python 2.3.4 is installed, for the path of a process of its own."""
    target = tmp_path_factory.mktemp("segment-2.3.4")
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target", str(target),
        "--requirement", str(HERE / "requirements.txt"),
    ]  # fmt: skip
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"pip cannot install segment-analytics-python 2.3.4: {installed.stderr[-300:]}")
    return str(target)


def tell(sdk, bed, key, path):
    """Let an SDK tell the story to the platform; return the errors that it reports."""
    command = [sys.executable, "-W", "ignore", str(HERE / "python_story.py"), SDKS[sdk], bed.url, key]
    done = subprocess.run(command, env={"PYTHONPATH": path}, check=True, capture_output=True, text=True, timeout=120)
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=SDKS)
def sdk(request):
    """Return the name of an SDK, and where it is installed."""
    return request.param, request.getfixturevalue("older_segment") if request.param.endswith("2.3.4") else ""


@pytest.fixture(scope="module")
def bed(sdk, _migrated):
    """Return a platform for one SDK's tests."""
    with copied(_migrated) as url, platform(url) as bed:
        yield bed


def test_every_call_is_stored_once(sdk, bed):
    name, path = sdk
    assert tell(name, bed, bed.key, path) == []
    assert heard(bed) == STORY
    assert libraries(bed) == {("analytics-python", name.split()[1])}
    graph = {"user_id": ["u1"], "email": ["ann@example.com"], "anonymous_id": ["a1", "old"]}
    assert person(bed) == (graph, {"email": "ann@example.com", "plan": "pro", "age": 37}, 6 + VIEWS)


def test_an_sdk_understands_a_refusal(sdk, bed):
    sdk, path = sdk
    refused = tell(sdk, bed, "wk_unknown", path)
    name = "rudderstack" if "rudder" in sdk else "Segment"
    text = "The write key is not known, or its source is switched off. Check it."
    assert set(refused) == {f"[{name}] unknown_write_key: {text} (401)"}


def test_what_an_sdk_writes_that_is_no_json_costs_that_event_alone(database_url):
    from segment.analytics.client import Client

    with platform(database_url) as bed:
        client = Client(bed.key, host=bed.url)
        client.track(user_id="u1", event="Good", properties={"price": 1})
        client.track(user_id="u1", event="Bad", properties={"price": float("nan")})
        client.track(user_id="u1", event="Also good")
        client.shutdown()
        bed.process()
        assert [event["name"] for event in bed.events()] == ["Good", "Also good"]
        assert bed.rows("SELECT reason FROM cdp_deadletter") == [{"reason": "malformed"}]
