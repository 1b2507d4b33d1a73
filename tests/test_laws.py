"""Law 4: order of arrival, splitting into batches and repetition do not matter."""

import json
from decimal import Decimal

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from cdp.log.base import Delivery, Event
from cdp.processing import registers
from cdp.processing.decode import decode
from cdp.processing.kinds import KINDS
from cdp.processing.traits import Definition, Folder

values = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.lists(st.integers(), max_size=2))
states_of_registers = st.dictionaries(
    st.sampled_from("abc"),
    # The order of a register is its event's: two of the same order are the same register.
    st.builds(
        lambda at, rank, number: registers.Register(
            msgspec.Raw(json.dumps(f"{at}/{rank}/{number}").encode()), at, rank, str(number)
        ),
        st.integers(0, 3), st.integers(0, 1), st.integers(0, 3),
    ),
    max_size=3,
)  # fmt: skip


def plain(state):
    """Return what is left of a state after it went through JSON."""
    return msgspec.json.decode(msgspec.json.encode(state))


@given(states_of_registers, states_of_registers, states_of_registers)
def test_registers_combine_in_any_order_grouping_and_number(a, b, c):
    combine = registers.combine
    assert combine(a, b) == combine(b, a)
    assert combine(a, combine(b, c)) == combine(combine(a, b), c)
    assert combine(a, a) == a
    assert combine(a, combine(a, b)) == combine(a, b)
    assert combine(a, {}) == a
    assert registers.load(msgspec.json.encode(a)) == a


FOLDER = Folder(
    [
        Definition(1, "event_count", "count", "", "", {}, 1),
        Definition(2, "first_seen", "first_time", "", "", {}, 1),
        Definition(3, "last_seen", "last_time", "track", "", {}, 1),
        Definition(4, "total_spent", "sum", "track", "Order Completed", {"property": "total"}, 1),
        Definition(5, "tax", "sum", "track", "Order Completed", {"property": "details.tax"}, 2),
    ]
)
messages = st.builds(
    lambda name, at, total, tax: decode(
        Event(
            "track", "m", 0,
            b'{"event":"%b","userId":"u","timestamp":%d,"properties":{"total":%b,"details":{"tax":%b}}}'
            % (name.encode(), at, str(total).encode(), str(tax).encode()),
        ),
        Delivery(1, 10**16, "", b"", b"", []),
    ),
    st.sampled_from(["Order Completed", "Clicked"]),
    st.integers(0, 10**9),
    st.decimals(min_value=-1000, max_value=1000, places=2),
    st.integers(0, 10),
)  # fmt: skip


@given(st.lists(messages, max_size=20), st.randoms(), st.integers(1, 5))
def test_any_order_and_any_split_into_batches_give_one_state(history, random, parts):
    whole = {}
    for message in history:
        FOLDER.fold(whole, message)
    shuffled = random.sample(history, len(history))
    combined = {}
    for start in range(parts):
        part = {}
        for message in shuffled[start::parts]:
            FOLDER.fold(part, message)
        combined = FOLDER.combine(plain(combined), plain(part))
    assert FOLDER.present(plain(whole), 0) == FOLDER.present(plain(combined), 0)


@given(st.lists(st.decimals(min_value=-(10**9), max_value=10**9, places=2), min_size=1, max_size=30))
def test_sums_are_what_decimals_say(amounts):
    total = amounts[0]
    for amount in amounts[1:]:
        total = KINDS["sum"].combine(total, plain(amount))
    assert total == sum(amounts, Decimal(0))
    assert Decimal(bytes(KINDS["sum"].present(plain(total), 0)).decode()) == total


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), values), max_size=12), st.randoms())
def test_given_traits_do_not_depend_on_arrival(history, random):
    lifted = [
        registers.lift(
            json.dumps({"plan": value, str(rank): at}).encode(), at_us=at, rank=rank % 2, message_id=str(number)
        )
        for number, (at, rank, value) in enumerate(history)
    ]
    expected, got = {}, {}
    for state in lifted:
        expected = registers.combine(expected, state)
    for state in random.sample(lifted + lifted, 2 * len(lifted)):
        got = registers.combine(registers.load(msgspec.json.encode(got)), state)
    assert registers.present(got) == registers.present(expected)
