"""The platform as people meet it: the real web process and processor over a fresh database, and Chromium before it."""

import json
import os
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import httpx
import pytest
import redis
from playwright.sync_api import sync_playwright

from martech.embedded.valkey import ROLES
from tests.running import ROOT, free_port, wait_until

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
# Quiet, and nothing fetched from anywhere.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PASSWORD = "correct horse battery staple"


class Platform:
    """The web process and the processor, as `make up` runs them."""

    def __init__(self, database_url, logs):
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.environment = os.environ | {
            "DATABASE_URL": database_url,
            "DJANGO_SETTINGS_MODULE": "martech.settings",
            "DJANGO_SUPERUSER_PASSWORD": PASSWORD,
        }
        self._logs = logs
        self._running = []

    def manage(self, *arguments):
        """Run a management command and return what it printed."""
        command = [sys.executable, "manage.py", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def start(self):
        """Start both processes and wait for the web process to answer."""
        web = ["-m", "granian", "--interface", "asgi", "--port", str(self.port), "martech.asgi:application"]
        for name, command in (("web", web), ("processor", ["manage.py", "process_events"])):
            with (self._logs / f"{name}.log").open("wb") as log:
                self._running.append(
                    subprocess.Popen(
                        [sys.executable, *command], cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT
                    )
                )
        wait_until(self._answers, 30)

    def _answers(self):
        try:
            return httpx.get(f"{self.address}/admin/login/").status_code == 200
        except httpx.TransportError:
            return False

    def send(self, key, *messages):
        """Send a batch by a source's write key; return the position by which it is processed."""
        basic = b64encode(f"{key}:".encode()).decode()
        body = json.dumps({"batch": messages})
        answer = httpx.post(
            f"{self.address}/v1/batch?position=1", content=body, headers={"Authorization": f"Basic {basic}"}
        )
        assert (answer.status_code, answer.json()) == (200, {"success": True})
        return answer.headers["X-Martech-Position"]

    def stop(self):
        """End both processes."""
        for process in self._running:
            process.terminate()
        for process in self._running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def platform(database_url, tmp_path):
    """Return a running platform with an empty database, log and cache, and a superuser `admin`."""
    for role in ROLES:
        with redis.Redis.from_url(os.environ[f"{role.upper()}_URL"]) as server:
            server.flushall()
    running = Platform(database_url, tmp_path)
    running.manage("createsuperuser", "--noinput", "--username", "admin", "--email", "admin@example.com")
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def chromium():
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not there (Debian: apt install chromium; elsewhere set CHROMIUM)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def watch(page, address):
    """Return a list to which whatever goes wrong on the page is added."""
    troubles = []

    def requested(request):
        if not request.url.startswith((address, "data:", "blob:")):
            troubles.append(f"asked elsewhere: {request.url}")

    def answered(response):
        if response.status >= 400:
            troubles.append(f"{response.status} {response.url}")

    def said(message):
        if message.type == "error":
            troubles.append(message.text)

    page.on("request", requested)
    page.on("response", answered)
    page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url}"))
    page.on("console", said)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    return troubles


@pytest.fixture
def page(chromium, platform):
    """Return a page in the light theme; what fails to load, or goes elsewhere, fails the test."""
    context = chromium.new_context(base_url=platform.address, viewport={"width": 1280, "height": 800}, locale="en-GB",
                                   timezone_id="UTC", color_scheme="light")  # fmt: skip
    page = context.new_page()
    page.set_default_timeout(10_000)
    troubles = watch(page, platform.address)
    yield page
    context.close()
    assert troubles == []
