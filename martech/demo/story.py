"""What a shop would have sent: each customer as an unknown visitor, then by name, then each purchase.

The customer's number in the file is the user id. The file knows days only: the first purchase of a day counts
as made at noon (UTC), each further one of the same customer a second later; the visitor comes five minutes
before the first purchase, and gives a name one minute before.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, time, timedelta
from operator import itemgetter
from typing import Any, NamedTuple

from martech.demo.cdnow import Purchase

ORDER = "Order Completed"
VISIT = timedelta(minutes=-5)
NAMING = timedelta(minutes=-1)
# A page view and an identify call.
CALLS_BEFORE_PURCHASES = 2


class Call(NamedTuple):
    """A call of the SDK: its method, whose it is, when it happened, and the other arguments."""

    method: str
    customer: str
    at: datetime
    arguments: dict[str, Any]


def moment(purchase: Purchase, nth_of_day: int) -> datetime:
    """Return when a purchase was made; `nth_of_day` counts those of the customer and day from 0."""
    return datetime.combine(purchase.day, time(12), UTC) + timedelta(seconds=nth_of_day)


def timed(purchases: Iterable[Purchase]) -> Iterator[tuple[Purchase, datetime]]:
    """Give purchases with their times; those of a customer come together, by day."""
    before, nth = None, 0
    for purchase in purchases:
        nth = nth + 1 if before and before[0] == purchase.customer and before[2] == purchase.day else 0
        before = purchase
        yield purchase, moment(purchase, nth)


def calls(purchases: Iterable[Purchase]) -> Iterator[Call]:
    """Give every call in the order of time; the same purchases always give the same calls."""
    steps: list[tuple[datetime, Callable[[Purchase, datetime], Call], Purchase]] = []
    for purchase, at in timed(purchases):
        if purchase.number == 1:
            steps += [(at + VISIT, _visit, purchase), (at + NAMING, _naming, purchase)]
        steps.append((at, _order, purchase))
    steps.sort(key=itemgetter(0))
    # Made one by one: all together they would take 100 MB.
    for at, tell, purchase in steps:
        yield tell(purchase, at)


def _visit(purchase: Purchase, at: datetime) -> Call:
    person = purchase.customer
    arguments = {
        "anonymous_id": f"visitor-{person}",
        "name": "Home",
        "properties": {"path": "/", "title": "CDNOW"},
        "message_id": f"{person}-page",
    }
    return Call("page", person, at, arguments)


def _naming(purchase: Purchase, at: datetime) -> Call:
    person = purchase.customer
    arguments = {
        "user_id": person,
        "anonymous_id": f"visitor-{person}",
        "traits": {
            "name": f"Customer {person}",
            "email": f"customer-{person}@example.com",
            "first_order_date": purchase.day.isoformat(),
        },
        "message_id": f"{person}-identify",
    }
    return Call("identify", person, at, arguments)


def _order(purchase: Purchase, at: datetime) -> Call:
    # The shortest decimal that gives the double back, so the cents stay exact.
    dollars = float(purchase.revenue)
    order_id = f"{purchase.customer}-{purchase.number}"
    properties = {
        "order_id": order_id,
        "total": dollars,
        "revenue": dollars,
        "currency": "USD",
        "quantity": purchase.units,
    }
    arguments = {
        "user_id": purchase.customer,
        "event": ORDER,
        "properties": properties,
        "message_id": f"{purchase.customer}-order-{purchase.number}",
    }
    return Call("track", purchase.customer, at, arguments)
