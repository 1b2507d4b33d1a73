"""People whose identifiers overlap, and a sender of their events: what was taken of it stands in its ledger.

They share cookies and addresses with their neighbours and kiosks with many, so that evidence joins them, is refused,
and is undone again.
"""

import itertools
import threading
import time
from random import Random

import httpx

from cdp.processing.identity import Identifier, clean, collect

PEOPLE = 60
COOKIES = 3
KIOSKS = 2
COMPANIES = 6
BATCH = 10
REQUEST_SECONDS = 15.0
PATIENCE_SECONDS = 90.0


class Crowd:
    """The people of a round, by number; `tag` begins all that is said of them. No value is part of another one."""

    def __init__(self, tag: str, chance: Random) -> None:
        self.tag = tag
        self._chance = chance
        self._numbers = itertools.count()

    def user(self, person: int) -> str:
        """Return somebody's user id."""
        return f"{self.tag}-user-{person:03}"

    def kiosk(self, number: int) -> str:
        """Return a cookie that many have."""
        return f"{self.tag}-kiosk-{number:03}"

    def message(self) -> dict:
        """Return what somebody does next; its id and its note stand nowhere else."""
        chance, number, person = self._chance, next(self._numbers), self._chance.randrange(PEOPLE)
        note = {"note": f"{self.tag}-note-{number:05}", "amount": chance.randrange(1000) / 100}
        message = {"messageId": f"{self.tag}-message-{number:05}", "timestamp": _iso(chance)}
        user = {"userId": self.user(person)}
        drawn = chance.random()
        if drawn < 0.25:
            mail = {"email": f"{self.tag}-mail-{self._near(person, 0.1):03}@example.com"}
            return message | user | self._cookie(person) | {"type": "identify", "traits": note | mail}
        if drawn < 0.32:
            crm = {"externalIds": [{"type": "crm_id", "id": f"{self.tag}-crm-{self._near(person, 0.1):03}"}]}
            return message | user | {"type": "identify", "traits": note, "context": crm}
        if drawn < 0.36:
            return message | user | {"type": "alias", "previousId": self._cookie(person)["anonymousId"]}
        if drawn < 0.42:
            company = f"{self.tag}-company-{chance.randrange(COMPANIES):03}"
            return message | user | {"type": "group", "groupId": company, "traits": {"plan": chance.choice("ab")}}
        who = chance.choice([user, self._cookie(person), user | self._cookie(person)])
        return message | who | {"type": "track", "event": "Order Completed", "properties": note}

    def _near(self, person: int, often: float) -> int:
        """Return a person, or so often a neighbour."""
        return (person + 1) % PEOPLE if self._chance.random() < often else person

    def _cookie(self, person: int) -> dict:
        if self._chance.random() < 0.05:
            return {"anonymousId": self.kiosk(self._chance.randrange(KIOSKS))}
        whose = self._near(person, 0.08)
        return {"anonymousId": f"{self.tag}-cookie-{whose:03}-{self._chance.randrange(COOKIES)}"}


def _iso(chance: Random) -> str:
    at = time.time() - chance.uniform(0, 2 * 24 * 3600)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{chance.randrange(1000):03}Z"


def named(message: dict) -> set[Identifier]:
    """Return whom a message names."""
    mail, context = message.get("traits", {}).get("email"), message.get("context", {})
    found = collect(message.get("userId"), message.get("anonymousId"), mail, context.get("externalIds"))
    if message["type"] == "alias":
        # It is a user id or a cookie, whichever is known.
        found += [Identifier(name, clean(name, message["previousId"])) for name in ("user_id", "anonymous_id")]
    return set(found)


class Sender(threading.Thread):
    """Sends messages until it is stopped, each batch until it is taken; a few twice.

    `taken` are the messages that were acknowledged, by id; `trouble` says why it gave up, if it did.
    """

    def __init__(self, url: str, write_key: str, crowd: Crowd, chance: Random, *, rate: float) -> None:
        super().__init__(daemon=True)
        self.taken: dict[str, dict] = {}
        self.trouble = ""
        self.stopped = threading.Event()
        self._crowd, self._chance, self._pause = crowd, chance, BATCH / rate
        self._client = httpx.Client(base_url=url, auth=(write_key, ""), timeout=REQUEST_SECONDS)

    def run(self) -> None:
        """Send."""
        with self._client:
            while not self.stopped.wait(self._pause) and not self.trouble:
                batch = [self._crowd.message() for _ in range(BATCH)]
                if self._delivered(batch):
                    self.taken |= {one["messageId"]: one for one in batch}
                if self._chance.random() < 0.05:
                    self._delivered(batch)

    def _delivered(self, batch: list[dict]) -> bool:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                answer = self._client.post("/v1/batch", json={"batch": batch})
                if answer.status_code == 200:
                    return True
                self.trouble = "" if answer.status_code in {429, 503} else f"{answer.status_code}: {answer.text}"
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        self.trouble = self.trouble or "A batch was never taken."
        return False
