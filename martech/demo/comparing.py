"""What the file says beside what the platform says."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import httpx
import msgspec
import psycopg

from martech.demo import story
from martech.demo.cdnow import Purchase
from martech.lib.errors import PermanentError, RetryableError

TOP = 10
READ_SECONDS = 15.0


class Customer(NamedTuple):
    """One customer: all their events, what they spent, and the times of the first and the last event."""

    events: int
    spent: Decimal
    first: datetime | None
    last: datetime | None


@dataclass(frozen=True, slots=True)
class Picture:
    """The purchases as one side tells them; `customers` by user id, `refused` what was put aside as unusable."""

    purchases: int
    units: int
    revenue: Decimal
    first_day: date | None
    last_day: date | None
    events: int
    refused: int
    customers: dict[str, Customer]


class Line(NamedTuple):
    """A line of the comparison."""

    what: str
    file: str
    platform: str

    @property
    def equal(self) -> bool:
        """Whether both sides say the same."""
        return self.file == self.platform


def from_file(purchases: Iterable[Purchase]) -> Picture:
    """Return what the file says."""
    purchases = list(purchases)
    customers: dict[str, Customer] = {}
    for purchase, at in story.timed(purchases):
        known = customers.get(purchase.customer)
        if known is None:
            known = Customer(story.CALLS_BEFORE_PURCHASES, Decimal(0), at + story.VISIT, at)
        # The purchases of a customer come in the order of time.
        customers[purchase.customer] = Customer(known.events + 1, known.spent + purchase.revenue, known.first, at)
    return Picture(
        purchases=len(purchases),
        units=sum(one.units for one in purchases),
        revenue=sum((one.revenue for one in purchases), Decimal(0)),
        first_day=min((one.day for one in purchases), default=None),
        last_day=max((one.day for one in purchases), default=None),
        events=len(purchases) + story.CALLS_BEFORE_PURCHASES * len(customers),
        refused=0,
        customers=customers,
    )


EVENTS = """
SELECT count(*) FILTER (WHERE ordered), sum((properties->>'quantity')::bigint) FILTER (WHERE ordered),
       sum((properties->>'total')::numeric) FILTER (WHERE ordered), min(day) FILTER (WHERE ordered),
       max(day) FILTER (WHERE ordered), count(*)
FROM (SELECT properties, event_type = 'track' AND name = %s AS ordered, (occurred_at AT TIME ZONE 'UTC')::date AS day
      FROM event_stream WHERE source_id = %s) AS sent
"""
CUSTOMERS = """
SELECT identifier.value, (computed_traits->>'event_count')::bigint, (computed_traits->>'total_spent')::numeric,
       (computed_traits->>'first_seen')::timestamptz, (computed_traits->>'last_seen')::timestamptz
FROM cdp_identifier AS identifier JOIN customer_profiles AS profile ON profile.id = identifier.profile_id
WHERE identifier.namespace = 'user_id'
      AND identifier.id IN (SELECT anchor_id FROM event_stream WHERE source_id = %s AND event_type = 'identify')
"""
REFUSED = "SELECT count(*) FROM cdp_deadletter WHERE source_id = %s"


def from_platform(database_url: str, source_id: int) -> Picture:
    """Return what the platform's tables say: purchases by event rows, customers by their profiles' computed traits."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        counted = _row(connection, EVENTS, [story.ORDER, source_id])
        purchases, units, revenue, first_day, last_day, events = counted
        refused = _row(connection, REFUSED, [source_id])[0]
        rows = connection.execute(CUSTOMERS, [source_id]).fetchall()
    return Picture(
        purchases, int(units or 0), revenue or Decimal(0), first_day, last_day, events, refused,
        {name: Customer(count, spent or Decimal(0), first, last) for name, count, spent, first, last in rows},
    )  # fmt: skip


def _row(connection: psycopg.Connection[Any], query: str, values: list[Any]) -> tuple[Any, ...]:
    return connection.execute(query, values).fetchall()[0]


def top(customers: Mapping[str, Customer]) -> list[str]:
    """Return the user ids of those who spent most; among equals the lower id comes first."""
    return sorted(customers, key=lambda name: (-customers[name].spent, name))[:TOP]


def read_profiles(url: str, api_key: str, names: Iterable[str], position: str) -> dict[str, Customer]:
    """Read customers by the profile API, as they are at `position` of the log or later."""
    headers = {"Authorization": f"Bearer {api_key}"}
    query = {"min_position": position} if position else {}
    with httpx.Client(base_url=url, headers=headers, timeout=READ_SECONDS) as client:
        return {name: _profile(client.get(f"/v1/profiles/user_id:{name}", params=query)) for name in names}


class _Computed(msgspec.Struct):
    event_count: int = 0
    total_spent: Decimal = Decimal(0)
    first_seen: datetime | None = None
    last_seen: datetime | None = None


class _Profile(msgspec.Struct):
    computed_traits: _Computed


def _profile(answer: httpx.Response) -> Customer:
    if answer.status_code != 200:
        said = f"{answer.url} answered {answer.status_code}: {answer.text[:200]}"
        raise RetryableError(said) if answer.is_server_error else PermanentError(said)
    computed = msgspec.json.decode(answer.content, type=_Profile).computed_traits
    return Customer(computed.event_count, computed.total_spent, computed.first_seen, computed.last_seen)


def lines(file: Picture, platform: Picture, read: Mapping[str, Customer]) -> list[Line]:
    """Compare: the totals, every customer, and the top ten, which `read` holds as the API gave them."""
    equal = sum(platform.customers.get(name) == customer for name, customer in file.customers.items())
    return [
        Line("Customers", f"{len(file.customers):,}", f"{len(platform.customers):,}"),
        Line("Purchases", f"{file.purchases:,}", f"{platform.purchases:,}"),
        Line("Units (CDs)", f"{file.units:,}", f"{platform.units:,}"),
        Line("Revenue, sum of events", _money(file.revenue), _money(platform.revenue)),
        Line("Revenue, sum of profiles", _money(file.revenue), _money(_spent(platform))),
        Line("First day", f"{file.first_day}", f"{platform.first_day}"),
        Line("Last day", f"{file.last_day}", f"{platform.last_day}"),
        Line("All events", f"{file.events:,}", f"{platform.events:,}"),
        Line("Events put aside", f"{file.refused:,}", f"{platform.refused:,}"),
        Line("Customers, one by one", f"{len(file.customers):,}", f"{equal:,}"),
        *_ranks(file.customers, platform.customers, read),
    ]


def _spent(picture: Picture) -> Decimal:
    return sum((customer.spent for customer in picture.customers.values()), Decimal(0))


def _money(amount: Decimal) -> str:
    """Show an amount with its cents, and with more where it has more."""
    cents = amount.quantize(Decimal("0.01"))
    return f"{cents if cents == amount else amount:,}"


def _ranks(
    file: Mapping[str, Customer], platform: Mapping[str, Customer], read: Mapping[str, Customer]
) -> Iterable[Line]:
    ours, theirs = top(file), top(platform)
    for rank in range(max(len(ours), len(theirs))):
        yield Line(
            f"{rank + 1}. by revenue",
            *(_shown(names, rank, found) for names, found in ((ours, file), (theirs, read))),
        )


def _shown(names: list[str], rank: int, found: Mapping[str, Customer]) -> str:
    if rank >= len(names) or names[rank] not in found:
        return "–"
    one = found[names[rank]]
    return f"{names[rank]}  {_money(one.spent)}  {one.events} events"
