"""Faults at random, one every 0.2–0.7 s, to programs that are well; and their end."""

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from random import Random

import httpx
import psutil
import psycopg
import redis

from martech.embedded import supervisor
from tests.faults.bed import Bed
from tests.faults.faults import FAULTS, Fault, Lasting, Missed

EVERY_SECONDS = (0.2, 0.7)
# A program that is hit as soon as it starts would never do anything, and be restarted later and later.
WELL_SECONDS = supervisor.WELL_SECONDS + 0.5
# Between two faults of one program that it outlived.
REST_SECONDS = 1.5
MISSED = (Missed, psycopg.Error, redis.RedisError, psutil.Error, httpx.TransportError)


class Fire:
    """Brings faults about, and counts them by what they are."""

    def __init__(
        self, bed: Bed, chance: Random, faults: Sequence[Fault] = FAULTS, every: tuple[float, float] = EVERY_SECONDS
    ) -> None:
        self.bed, self.chance, self.faults, self.every = bed, chance, faults, every
        self.counts: Counter[str] = Counter()
        self._next = time.monotonic()
        self._lasting: list[tuple[float, Fault, Lasting]] = []
        self._hit_at: dict[str, float] = {}

    def step(self) -> None:
        """Do what is due, and sleep a little."""
        now = time.monotonic()
        for one in [one for one in self._lasting if one[0] <= now]:
            self._end(one)
        if now >= self._next:
            self._inject()
            self._next = now + self.chance.uniform(*self.every)
        time.sleep(0.02)

    def _inject(self) -> None:
        """Bring one fault about, of those whose victims are well."""
        possible = [fault for fault in self.faults if all(self._well(victim) for victim in fault.victims)]
        if not possible:
            return
        # What was seldom possible so far comes sooner, so that each gets its share.
        rarest = min(self.counts[str(fault)] for fault in possible)
        fault = self.chance.choice([fault for fault in possible if self.counts[str(fault)] <= rarest + 1])
        try:
            lasting = fault.inject(self.bed, self.chance)
        except MISSED:
            return
        self.counts[str(fault)] += 1
        now = time.monotonic()
        self._hit_at |= dict.fromkeys(fault.victims, now)
        if lasting is not None:
            self._lasting.append((now + lasting.seconds, fault, lasting))

    def _well(self, victim: str) -> bool:
        disturbed = {victim for _, fault, _ in self._lasting for victim in fault.victims}
        rested = time.monotonic() - self._hit_at.get(victim, 0.0) > REST_SECONDS
        return victim not in disturbed and rested and self.bed.age(victim) > WELL_SECONDS

    def _end(self, one: tuple[float, Fault, Lasting]) -> None:
        self._lasting.remove(one)
        self._hit_at |= dict.fromkeys(one[1].victims, time.monotonic())
        # A server that was killed meanwhile has its own settings again, a process that is gone needs nothing.
        with contextlib.suppress(*MISSED):
            one[2].end()

    def end(self) -> None:
        """End what lasts."""
        for one in list(self._lasting):
            self._end(one)
