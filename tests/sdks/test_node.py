"""The stock Node SDKs against the real server, with nothing but the host changed (`make test-sdks`)."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading

import pytest

from tests.sdks.bed import HERE, STORY, VIEWS, heard, libraries, person, platform

pytestmark = pytest.mark.sdks

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
SCRIPTS = {
    "segment_node.cjs": ("@segment/analytics-node", "3.1.0"),
    "rudder_node.cjs": ("analytics-node", "3.0.13"),
}


@pytest.fixture(scope="session")
def _installed():
    """Install the SDKs as they are locked."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    lock = HERE / "node_modules" / ".package-lock.json"
    if lock.exists() and lock.stat().st_mtime > (HERE / "package-lock.json").stat().st_mtime:
        return
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    subprocess.run(command, cwd=HERE, check=True, timeout=300)


def tell(script, bed, key):
    """Let an SDK tell the story to the platform; return the errors that it reports."""
    command = ["node", str(HERE / script), bed.url, key, str(VIEWS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return json.loads(done.stdout)


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_call_is_stored_once(script, database_url):
    with platform(database_url) as bed:
        assert tell(script, bed, bed.key) == []
        assert heard(bed) == STORY
        assert libraries(bed) == {SCRIPTS[script]}
        graph = {"user_id": ["u1"], "email": ["ann@example.com"], "anonymous_id": ["a1", "old"]}
        assert person(bed) == (graph, {"email": "ann@example.com", "plan": "pro", "age": 37}, 6 + VIEWS)


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(("script", "told"), [("segment_node.cjs", {"delivery_failure"}), ("rudder_node.cjs", {401})])
def test_an_sdk_understands_a_refusal(script, told, database_url):
    with platform(database_url) as bed:
        assert set(tell(script, bed, "wk_unknown")) == told


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the page of the shop, in silence."""

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def shop(_installed):
    """Serve the page from an origin of its own, and yield its address."""
    handler = functools.partial(Quiet, directory=str(HERE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()
        serving.join()


ONE_BY_ONE = {f"/v1/{call}" for call in "tipsga"}
BATCHING = {"strategy": "batching", "config": {"size": 10, "timeout": 500}}


@pytest.mark.parametrize("strategy", [None, BATCHING], ids=["standard", "batching"])
def test_the_browsers_sdk_sends_from_another_origin(strategy, shop, database_url):
    if not os.path.exists(CHROMIUM):
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with platform(database_url, kind="browser") as bed, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request))  # noqa: PLW0108 - it takes no built-in function
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(f"{shop}/visit.html")
        page.evaluate("arguments => tell(...arguments)", [bed.url, bed.key, 30, strategy])
        page.wait_for_timeout(1500)  # The last batch leaves after half a second.
        browser.close()
        assert errors == []
        assert {request.url.split("/v1/")[0] for request in asked if not request.url.startswith(shop)} == {bed.url}
        posted = [request for request in asked if request.method == "POST"]
        assert {request.headers["content-type"] for request in posted} == {"text/plain"}
        assert {request.url.removeprefix(bed.url) for request in posted} == ({"/v1/b"} if strategy else ONE_BY_ONE)
        _check_visit(bed, shop)


def _check_visit(bed, shop):
    found = heard(bed)
    [(name, properties)] = found.pop("page")
    url = f"{shop}/visit.html"
    seen = {"name": "Home", "path": "/", "url": url, "title": "Home", "search": "", "referrer": ""}
    assert (name, properties) == ("Home", seen)
    assert found == {
        "identify": [("", {"plan": "pro", "age": 37})],
        "track": STORY["track"][:31],
        "screen": STORY["screen"],
        "group": STORY["group"],
        # After identify('u1'), alias('newer', 'old') means that u1 was old.
        "alias": [("", {})],
    }
    assert libraries(bed) == {("analytics.js", "next-1.84.3")}
    assert {event["context"]["ip"] for event in bed.events()} == {"127.0.0.1"}
    assert person(bed) == ({"user_id": ["u1"], "anonymous_id": ["a1", "old"]}, {"plan": "pro", "age": 37}, 36)
