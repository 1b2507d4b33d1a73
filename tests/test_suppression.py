"""Erased people are kept out of the core: whatever carries one of their identifiers leaves no row anywhere."""

import json
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdp import config
from cdp.log.base import Delivery, Event
from cdp.processing import suppression
from cdp.processing.decode import decode
from cdp.processing.identity import Identifier
from cdp.processing.pipeline import Pipeline
from martech.lib import crypto
from martech.lib.errors import ConfigurationError
from tests.platform import message

KEY = config.load().privacy_key
ANN, EMAIL, COOKIE = Identifier("user_id", "ann-1"), Identifier("email", "ann@example.com"), Identifier("cookie", "c-1")
TABLES = ("event_stream", "event_duplicate", "cdp_identifier", "cdp_edge", "cdp_deadletter", "cdp_identitydecision")


@pytest.fixture
def keep_out(core):
    """Return what writes down that identifiers were erased, as an erasure does."""

    def write(*identifiers, key=KEY):
        for digest in [suppression.canary(key), *(suppression.digest(key, one) for one in identifiers)]:
            core.connection.execute(
                "INSERT INTO cdp_suppressedidentifier (digest, created_at) VALUES (%s, now()) ON CONFLICT DO NOTHING",
                [digest],
            )
        core.connection.execute("UPDATE cdp_definitionversion SET version = version + 1")

    return write


def rows(core):
    return {table: core.rows(f"SELECT count(*) AS number FROM {table}")[0]["number"] for table in TABLES}


@pytest.mark.parametrize(
    "sent",
    [
        message(userId="ann-1"),
        message(anonymousId="new", context={"traits": {"email": "Ann@Example.com"}}),
        message("identify", userId="other", traits={"email": "ann@example.com"}),
        message(anonymousId="new", context={"externalIds": [{"type": "cookie", "id": "c-1"}]}),
        message("alias", userId="other", previousId="ann-1"),
        message("identify", userId=" ann-1 "),
        {"userId": "ann-1"},
        message("track", userId="ann-1", event=""),
        message("unheard-of", userId="other", traits={"email": "ANN@example.com"}),
        {"type": "unheard-of", "context": {"externalIds": [{"type": "cookie", "id": "c-1"}]}},
        b'{"type": "track", "userId": "ann-1", "event": "Clicked"',
        b'{"type": "track", "event": "x", "email": "\\u0061nn@example.com", broken',
    ],
)
def test_what_carries_an_erased_identifier_leaves_no_row(core, keep_out, sent):
    keep_out(ANN, EMAIL, COOKIE)
    before = rows(core)
    applied = core.apply(sent)
    assert (applied.suppressed, applied.events, applied.rejections) == (1, 0, {})
    assert rows(core) == before


def test_others_in_the_same_batch_come_in(core, keep_out):
    keep_out(ANN)
    applied = core.apply(message(userId="ann-1"), message(userId="bob"), message(userId="ann-2"), b'{"type": "x"')
    assert (applied.suppressed, applied.events, applied.rejections) == (1, 2, {"malformed": 1})
    assert {row["value"] for row in core.rows("SELECT value FROM cdp_identifier")} == {"bob", "ann-2"}


def test_an_identifier_that_a_source_may_not_set_keeps_the_event_out_too(core, keep_out):
    keep_out(EMAIL)
    browser = core.source("browser")
    sent = message("identify", anonymousId="new", traits={"email": "ann@example.com"})
    assert core.apply(sent, source=browser).suppressed == 1


def test_whoever_is_remembered_is_asked_for_again_once_somebody_was_erased(core, keep_out):
    core.apply(message(userId="ann-1"))
    core.connection.execute("DELETE FROM event_stream")
    core.connection.execute("DELETE FROM cdp_identifier")
    keep_out(ANN)
    assert core.apply(message(userId="ann-1")).suppressed == 1


def test_a_letter_that_was_given_back_goes_with_its_event(core, keep_out):
    refusing = core.source("server", {"refused_calls": ["track"]})
    core.apply(message(userId="ann-1"), message(userId="bob"), source=refusing)
    letter = core.rows("SELECT id FROM cdp_deadletter ORDER BY id")[0]["id"]
    keep_out(ANN)
    arrivals = core.arrivals(message(userId="ann-1"))
    arrivals = [one._replace(delivery=Delivery(1, 1, "", b"", b"", [], "", letter)) for one in arrivals]
    with core.writer.transaction():
        assert core.pipeline.apply(core.writer, arrivals).suppressed == 1
    assert core.letters() == ["refused_call"]


def test_a_core_with_another_key_stands_still_instead_of_letting_people_back(core, keep_out):
    keep_out(ANN)
    other = Pipeline(crypto.derived("another secret", "martech.privacy"))
    with pytest.raises(ConfigurationError, match="PRIVACY_KEY"):
        with core.writer.transaction():
            other.apply(core.writer, core.arrivals(message(userId="bob")))


def test_without_anybody_erased_any_key_will_do(core):
    other = Pipeline(b"x")
    with core.writer.transaction():
        assert other.apply(core.writer, core.arrivals(message(userId="bob"))).events == 1


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), st.text(min_size=1))
def test_no_two_identifiers_share_a_hash_by_how_they_are_written(namespace, value):
    one, other = Identifier(f"{namespace}:a", value), Identifier(namespace, f"a:{value}")
    assert suppression.digest(KEY, one) != suppression.digest(KEY, other)


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_every_body_can_be_searched(body):
    data = json.dumps(body).encode()
    event = Event("", "", 0, data)
    delivery = Delivery(1, 1, "", b"", b"", [event])
    assert isinstance(suppression.carried(decode(event, delivery), event, delivery), list)
    suppression.carried(decode(event, delivery), Event("", "", 0, data[: len(data) // 2]), delivery)


def test_the_key_is_made_of_the_secret_key_unless_it_is_given(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "one")
    monkeypatch.delenv("PRIVACY_KEY", raising=False)
    of_secret = config.load().privacy_key
    monkeypatch.setenv("PRIVACY_KEY", "one")
    assert config.load().privacy_key == of_secret
    monkeypatch.setenv("PRIVACY_KEY", str(uuid4()))
    assert config.load().privacy_key != of_secret
