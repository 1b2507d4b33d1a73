"""Somebody who decides on people through the API: what was promised of it, by the answers that came.

What was answered with an error that says no, or was never answered, was not promised; it may have been done.
"""

import threading
import time
from collections import Counter
from random import Random
from typing import Any

import httpx

from tests.faults.overlapping import KIOSKS, PEOPLE, Crowd

REQUEST_SECONDS = 15.0
PAUSE_SECONDS = (0.05, 0.25)
MOST_ERASURES = 4
# What may be answered: done, gone, refused for a reason, not as it was read, not now.
ANSWERS = {200, 201, 202, 404, 409, 412, 422, 429, 503}


class Decider(threading.Thread):
    """Takes random decisions until it is stopped, one after the other.

    `unmerges`, `edits`, `rules` and `erasures` are those that were answered as done: a decision's sides by its id,
    an edit's profile by the value that it gave, a version, and the person by the erasure's id. `lifts` are decisions
    that may be lifted, of which `lifted` are; `refused` are the values of edits that were answered as not done.
    """

    def __init__(self, url: str, api_key: str, crowd: Crowd, chance: Random) -> None:
        super().__init__(daemon=True)
        self.stopped = threading.Event()
        self.answers: Counter[str] = Counter()
        self.unmerges: dict[int, dict[str, list[dict]]] = {}
        self.lifts: set[int] = set()
        self.lifted: set[int] = set()
        self.edits: dict[str, dict[str, Any]] = {}
        self.refused: set[str] = set()
        self.rules: set[int] = set()
        self.erasures: dict[str, str] = {}
        self.trouble: list[str] = []
        self._crowd, self._chance = crowd, chance
        self._client = httpx.Client(
            base_url=f"{url}/v1", headers={"Authorization": f"Bearer {api_key}"}, timeout=REQUEST_SECONDS
        )

    def run(self) -> None:
        """Decide."""
        deeds = [self._unmerge] * 6 + [self._lift] * 3 + [self._edit] * 5 + [self._change_rules] * 2 + [self._erase]
        with self._client:
            while not self.stopped.wait(self._chance.uniform(*PAUSE_SECONDS)):
                self._chance.choice(deeds)()

    def _ask(self, deed: str, method: str, path: str, **options: Any) -> httpx.Response | None:
        """Return what was answered; None where nothing was."""
        try:
            answer = self._client.request(method, path, **options)
        except httpx.TransportError as error:
            self.answers[f"{deed} {type(error).__name__}"] += 1
            return None
        self.answers[f"{deed} {answer.status_code}"] += 1
        # Between the look at a profile and the deed somebody else may have taken an identifier out of it.
        overtaken = answer.status_code == 400 and answer.json()["code"] == "not_apart"
        if answer.status_code not in ANSWERS and not overtaken:
            self.trouble.append(f"{method} {path} was answered with {answer.status_code}: {answer.text[:500]}")
        return answer

    def _somebody(self) -> tuple[dict[str, Any], str] | None:
        """Return a profile with its ETag."""
        user = self._crowd.user(self._chance.randrange(PEOPLE))
        # By its id, as the database has it: by an identifier it comes from the cache.
        found = self._ask("read", "GET", f"/profiles/user_id:{user}")
        if found is None or found.status_code != 200:
            return None
        answer = self._ask("read", "GET", f"/profiles/{found.json()['id']}")
        if answer is None or answer.status_code != 200:
            return None
        return answer.json(), f'"{answer.json()["version"]}"'

    def _unmerge(self) -> None:
        somebody = self._somebody()
        if somebody is None or len(somebody[0]["identifiers"]) < 2:
            return
        profile, _ = somebody
        there = profile["identifiers"]
        taken = self._chance.sample(there, self._chance.randrange(1, len(there)))
        answer = self._ask("unmerge", "POST", f"/profiles/{profile['id']}/unmerge", json={"identifiers": taken})
        if answer is not None and answer.status_code == 200:
            kept = [one for one in there if one not in taken]
            self.unmerges[answer.json()["decision"]] = {"taken": taken, "kept": kept}

    def _lift(self) -> None:
        standing = sorted(self.unmerges.keys() - self.lifted)
        if not standing:
            return
        decision = self._chance.choice(standing)
        self.lifts.add(decision)
        answer = self._ask("lift", "POST", f"/identity-decisions/{decision}/lift", json={})
        if answer is not None and answer.status_code == 200:
            self.lifted.add(decision)

    def _edit(self) -> None:
        somebody = self._somebody()
        if somebody is None:
            return
        profile, etag = somebody
        value = f"{self._crowd.tag}-edit-{self._chance.randrange(10**9):09}"
        answer = self._ask("edit", "PATCH", f"/profiles/{profile['id']}", json={"traits": {"edited": value}},
                           headers={"If-Match": etag})  # fmt: skip
        if answer is not None and answer.status_code == 200:
            self.edits[value] = answer.json()
        elif answer is not None and answer.status_code in {404, 409, 412, 422}:
            self.refused.add(value)

    def _change_rules(self) -> None:
        draft = self._ask("draft", "POST", "/identity-rules", json={"namespaces": self._namespaces()})
        if draft is None or draft.status_code != 201:
            return
        answer = self._ask("publish", "POST", f"/identity-rules/{draft.json()['version']}/publish")
        if answer is not None and answer.status_code == 202:
            self.rules.add(answer.json()["version"])

    def _namespaces(self) -> dict[str, dict[str, Any]]:
        chance = self._chance
        blocked = [self._crowd.kiosk(number) for number in range(KIOSKS) if chance.random() < 0.4]
        return {
            "user_id": _rules(1, 0, 0),
            "email": _rules(chance.randint(1, 5), 10, chance.choice([1, 2, 10])),
            "anonymous_id": _rules(chance.randint(2, 6), 90, chance.choice([1, 2, 5, 10]), blocked),
            "*": _rules(chance.randint(1, 5), 50, 10),
        }

    def _erase(self) -> None:
        if len(self.erasures) >= MOST_ERASURES:
            return
        user = self._crowd.user(self._chance.randrange(PEOPLE))
        answer = self._ask("erase", "DELETE", f"/profiles/user_id:{user}", params={"reason": f"{user} asked"})
        if answer is not None and answer.status_code == 202:
            self.erasures[answer.json()["id"]] = user


def _rules(limit: int, priority: int, shared_after: int, blocked: list[str] | None = None) -> dict[str, Any]:
    return {"limit": limit, "priority": priority, "blocked": blocked or [], "shared_after": shared_after}


def stop(*threads: Any, seconds: float = 120.0) -> None:
    """Have senders and deciders end what they are at."""
    for one in threads:
        one.stopped.set()
    deadline = time.monotonic() + seconds
    for one in threads:
        one.join(max(0.0, deadline - time.monotonic()))
        assert not one.is_alive(), f"{type(one).__name__} has not ended in {seconds:.0f} s"
