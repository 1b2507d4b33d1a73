"""Portions for the log: what goes in is what the core takes, by the partition that the core's anchor says."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdp.imports.portions import Judge, Target, portions
from cdp.imports.records import Record
from cdp.imports.values import UnusableValue
from cdp.log.base import Delivery, Event, decode_entry, partition_of
from cdp.processing.decode import Rejection, decode

TARGET = Target(7, "imp-00-", 4, 4096)
texts = st.sampled_from(["u1", "", "anonymous", "0", "x" * 600, "a\0b", "ü", "A@b.C", "2019-05-03", "never"]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=8
)
anything = texts | st.none() | st.booleans() | st.integers(-5, 2**40) | st.lists(texts, max_size=2)
traits = anything | st.fixed_dictionaries({}, optional={"email": anything, "plan": anything})
messages = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["track", "identify", "page", "screen", "group", "alias"]) | anything,
        "userId": anything, "anonymousId": anything, "event": anything, "name": anything, "messageId": anything,
        "previousId": anything, "groupId": anything, "timestamp": anything, "originalTimestamp": anything,
        "properties": traits, "traits": traits,
        "context": anything | st.fixed_dictionaries(
            {}, optional={"traits": traits, "externalIds": st.just([{"id": "e1", "type": "card"}]) | anything}
        ),
    },
)  # fmt: skip


def judged(message, target=TARGET):
    judge = Judge(target, bytes)
    judge.begin(1_700_000_000_000_000)
    return judge.judged(Record(3, 3, 100, json.dumps(message).encode(), b""))


@given(messages)
def test_a_row_goes_in_where_the_core_takes_it_and_knows_its_time(message):
    event = Event("", "imp-00-3", 0, json.dumps(message).encode())
    delivery = Delivery(7, 1_700_000_000_000_000, "", b"", b"", [])
    verdict = decode(event, delivery, max_bytes=4096)
    taken = not isinstance(verdict, Rejection) and "unreadable_time" not in verdict.flags
    try:
        assert judged(message)[0] == event
    except UnusableValue:
        assert not taken
    else:
        assert taken


@given(st.lists(messages, max_size=30), st.integers(1, 7))
def test_portions_hold_every_row_once_by_its_anchor_and_in_order(found, rows):
    records = [
        Record(line, line, 10 * line, json.dumps(one).encode(), b"raw%d" % line) for line, one in enumerate(found, 1)
    ]
    made = list(portions(records, bytes, TARGET, start=0, rows=rows))
    assert [portion.end for portion in made] == [portion.start for portion in made[1:]] + [10 * len(found)] * bool(made)
    assert all(portion.rows + len(portion.bad) <= rows for portion in made)
    lines = []
    for portion in made:
        for partition, payload in portion.entries(7):
            (delivery,) = decode_entry(payload).deliveries
            own = [int(event.message_id.rpartition("-")[2]) for event in delivery.events]
            assert (own, delivery.source_id) == (sorted(own), 7)
            lines += own
            for event in delivery.events:
                assert partition_of(str(decode(event, delivery).anchor), 4) == partition
        lines += [bad.line for bad in portion.bad]
    assert sorted(lines) == list(range(1, len(found) + 1))


def test_what_a_source_s_rules_refuse_stays_out():
    target = TARGET._replace(refused_calls=frozenset({"track"}))
    with pytest.raises(UnusableValue, match="may not call track") as caught:
        judged({"type": "track", "userId": "u1", "event": "X"}, target)
    assert caught.value.code == "refused_call"


def test_what_is_too_large_stays_out():
    with pytest.raises(UnusableValue) as caught:
        judged({"type": "track", "userId": "u1", "event": "X", "properties": {"a": "x" * 5000}})
    assert caught.value.code == "too_large"
