"""The whole platform as a process of its own: `manage.py up`, and calls of it."""

import base64
import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

from tests.running import ROOT, environment, wait_until

STOP_SECONDS = 10


class Up:
    """`manage.py up` on a data directory and a port, and what it prints; `before` is a command that execs it."""

    def __init__(self, data, port, *, before=(), **more):
        self.data, self.port = data, port
        self.log = data.with_name(f"{data.name}-{port}.log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*before, sys.executable, "manage.py", "up"], cwd=ROOT, env=environment(data, PORT=port, **more),
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def said(self):
        """Return all that it printed."""
        return self.log.read_text()

    def wait_ready(self):
        """Return when it shows its addresses."""
        wait_until(lambda: "Read the profile:" in self.said() or self.process.poll() is not None, 60)
        assert self.process.poll() is None, self.said()

    def found(self, pattern):
        """Return what the pattern's group holds in the printed table."""
        return re.findall(pattern, self.said())[0]

    def stop(self, number=signal.SIGINT):
        """Ask for the end; return the seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(STOP_SECONDS + 5)
        return time.monotonic() - began

    def call(self, path, body=None, authorization=""):
        """Return status and JSON of a request; a status of 0 when nobody answers."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": authorization} if authorization else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, {}
        except OSError:
            return 0, {}

    def ready(self):
        """Say whether the web process can serve."""
        return self.call("/readyz")[0] == 200

    def identify(self, user, **traits):
        """Send an event with the write key that the table shows."""
        write_key = self.found(r"(wk_[\w-]+)")
        basic = base64.b64encode(f"{write_key}:".encode()).decode()
        return self.call("/v1/identify", {"userId": user, "traits": traits}, f"Basic {basic}")

    def traits(self, user):
        """Return a person's traits, read with the key that the table shows; None before there is a profile."""
        api_key = self.found(r"Bearer (mk_\w+)")
        _, profile = self.call(f"/v1/profiles/user_id:{user}", authorization=f"Bearer {api_key}")
        return profile.get("traits")

    def pid(self, name):
        """Return the process id of a program as it is noted, None while it does not run."""
        try:
            return json.loads((self.data / "run" / f"{name}.pid").read_text())["pid"]
        except (OSError, ValueError):
            return None
