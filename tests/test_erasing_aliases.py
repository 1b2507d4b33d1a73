"""What an alias made of an erased user's id in somebody else's profile goes too, and nothing else of the other."""

from datetime import UTC, datetime

import pytest
from django.db import connection
from django.utils import timezone

from cdp import archive, partitions, privacy, replay
from cdp.definitions import raise_version
from cdp.models import ArchiveFile, Erasure, Event, Identifier, IdentityDecision, Profile
from cdp.processing import suppression
from cdp.processing.identity import Identifier as Key
from tests.platform import message
from tests.test_erasure import EARLIER, erase, finish, platform  # noqa: F401 - a fixture

GONE = "vanishing-user-4711"
EARLY = "2026-10-01T10:00:00Z"


def here(platform):  # noqa: F811
    """Return in which stores the user's id stands."""
    forms = (GONE.encode(), GONE.encode().hex().encode())
    return {store for store, data in platform.stores().items() if any(form in data for form in forms)}


def other():
    """Return what is known of whom the alias joined the id to."""
    held = Profile.objects.get(identifiers__value="staying-user-1")
    return {
        "id": held.pk, "graph": {name: held.identity_graph[name] for name in ("user_id", "email")},
        "traits": held.traits, "events": sorted(Event.objects.filter(anchor__value="staying-user-1").values_list(
            "message_id", "event_type", "name", "profile_id")),
    }  # fmt: skip


def archived():
    """Put all events into a partition of the past, and that into the archive."""
    connection.ensure_connection()
    partitions.ensure(connection.connection, partitions.EVENTS, days=1, today=EARLIER, ahead=0)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE event_stream SET ingested_at = %s", [datetime(2026, 3, 2, 12, tzinfo=UTC)])
    assert sum(one.events for one in archive.archive_closed(now=timezone.now())) > 0


def lived(platform):  # noqa: F811
    """Let the other take the user's id over by an alias, which is refused as a merge and kept as an anonymous id."""
    platform.send(message("identify", userId=GONE, traits={"name": "Vanishing"}),
                  message("identify", userId="staying-user-1", traits={"email": "stay@example.com", "city": "Bonn"}),
                  message("alias", userId="staying-user-1", previousId=GONE, timestamp=EARLY),
                  message("page", anonymousId=GONE, name="Home"))  # fmt: skip
    platform.process()
    assert Identifier.objects.get(namespace="anonymous_id", value=GONE).profile.identity_graph == {
        "user_id": ["staying-user-1"], "email": ["stay@example.com"], "anonymous_id": [GONE]
    }  # fmt: skip
    assert IdentityDecision.objects.filter(kind="refusal", reason="two_identified_people").exists()


def test_no_byte_of_a_user_is_left_whom_an_alias_named(platform):  # noqa: F811
    lived(platform)
    archived()
    before = other()
    assert here(platform) >= {"postgresql", "log", "cache", "archive"}
    done = finish(platform, erase(f"user_id:{GONE}"))
    assert (done.status, done.receipts["postgresql"]["identifiers"]) == (Erasure.Status.DONE, 2)
    assert here(platform) == set()
    assert other() == before
    alias = Event.objects.filter(event_type="alias").order_by("event_id")
    assert [one.extra for one in alias] == [{"previousId": "[erased]"}]
    assert [one.identifiers for one in alias] == [[["user_id", "staying-user-1"]]]
    assert Profile.objects.get(identifiers__value="staying-user-1").computed_traits["event_count"] == 2
    assert Identifier.objects.count() == 2
    assert replay.verify().examples == []
    # Neither as a user nor as an anonymous visitor does it come back.
    platform.send(message(anonymousId=GONE), message(userId=GONE), message("alias", userId="new", previousId=GONE),
                  message(userId="staying-user-1", event="Stayed"))  # fmt: skip
    platform.process()
    assert set(Identifier.objects.values_list("value", flat=True)) == {"staying-user-1", "stay@example.com"}
    assert Event.objects.filter(name="Stayed").exists()


def test_the_other_keeps_the_profile_though_the_id_came_first(platform):  # noqa: F811
    """The anonymous id is older than all else of the profile, and there is no user of that name at all."""
    platform.send(message("page", anonymousId=GONE, name="Home"))
    platform.process()
    first = Profile.objects.get(identifiers__value=GONE)
    platform.send(message("alias", userId="staying-user-1", previousId=GONE))
    platform.process()
    assert Profile.objects.get(identifiers__value="staying-user-1") == first
    finish(platform, erase(f"user_id:{GONE}"))
    assert Profile.objects.get(identifiers__value="staying-user-1") == first
    first.refresh_from_db()
    assert (first.identity_graph, first.erased_at) == ({"user_id": ["staying-user-1"]}, None)
    assert here(platform) == set()
    assert replay.verify().examples == []


def test_an_erasure_by_the_anonymous_id_is_of_whom_it_belongs_to(platform):  # noqa: F811
    lived(platform)
    archived()
    finish(platform, erase(f"anonymous_id:{GONE}"))
    # The user of that name is somebody else, who stays.
    assert list(Identifier.objects.values_list("namespace", "value")) == [("user_id", GONE)]
    assert Profile.objects.get(identifiers__value=GONE).traits == {"name": "Vanishing"}
    assert b"staying-user-1" not in b"".join(platform.stores().values())
    assert replay.verify().examples == []


def test_a_visitor_of_the_same_name_whom_no_alias_named_is_somebody_else(platform):  # noqa: F811
    platform.send(message(userId=GONE), message(userId="staying-user-1", anonymousId=GONE))
    platform.process()
    finish(platform, erase(f"user_id:{GONE}"))
    assert set(Identifier.objects.values_list("namespace", "value")) == {
        ("user_id", "staying-user-1"), ("anonymous_id", GONE)
    }  # fmt: skip


@pytest.mark.parametrize(("kept", "left"), [("alias", 1), ("track", 2), ("", 1)])
def test_an_alias_whose_event_is_in_the_archive_alone_counts_and_so_does_what_nobody_can_tell(
    platform, kept, left  # noqa: F811
):  # fmt: skip
    said = message("alias", userId="staying-user-1", previousId=GONE) if kept == "alias" else message(
        userId="staying-user-1", anonymousId=GONE)  # fmt: skip
    platform.send(message(userId=GONE), said)
    platform.process()
    archived()
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE event_stream_20260302")
    if not kept:
        ArchiveFile.objects.all().delete()
    asked = erase(f"user_id:{GONE}")
    with pytest.raises(privacy.RetryableError):
        privacy.run(asked.pk, patience=0)
    assert Identifier.objects.count() == left
    assert Erasure.objects.get(pk=asked.pk).work["person"]["aliases"] == (
        [["anonymous_id", GONE]] if left == 1 else []
    )  # fmt: skip


def test_what_a_batch_brought_meanwhile_does_not_take_the_other_along(platform):  # noqa: F811
    """The id comes again beside the other's, by a batch that had begun before it was kept out."""
    lived(platform)
    before = other()
    asked = erase(f"user_id:{GONE}")
    with pytest.raises(privacy.RetryableError):
        privacy.run(asked.pk, patience=0)
    key = suppression.digest(privacy.settings.CONFIG.privacy_key, Key("anonymous_id", GONE))
    row = asked.suppressed.model.objects.get(digest=key)
    row.delete()
    raise_version()
    platform.send(message(userId="staying-user-1", anonymousId=GONE, event="Late"))
    platform.process()
    assert Identifier.objects.filter(value=GONE).exists()
    done = privacy.run(asked.pk, patience=5)
    assert done.status == Erasure.Status.DONE
    assert here(platform) == set()
    now = other()
    assert [one for one in now["events"] if one[2] != "Late"] == before["events"]
    assert (now["id"], now["graph"], now["traits"]) == (before["id"], before["graph"], before["traits"])
    assert replay.verify().examples == []


def test_what_an_alias_made_of_an_email_goes_with_it(platform):  # noqa: F811
    email = "wilhelmina@postbox.example"
    platform.send(message("identify", userId=GONE, traits={"email": email}),
                  message("identify", userId="staying-user-1", traits={"email": "stay@example.com", "city": "Bonn"}),
                  message("alias", userId="staying-user-1", previousId=email))  # fmt: skip
    platform.process()
    assert Identifier.objects.filter(namespace="anonymous_id", value=email).exists()
    before = Profile.objects.get(identifiers__value="staying-user-1")
    finish(platform, erase(f"email:{email}"))
    after = Profile.objects.get(identifiers__value="staying-user-1")
    assert (after.pk, after.traits) == (before.pk, before.traits)
    assert after.identity_graph == {"user_id": ["staying-user-1"], "email": ["stay@example.com"]}
    assert [store for store, data in platform.stores().items() if email.encode() in data] == []
    assert replay.verify().examples == []


@pytest.mark.parametrize("is_refused", [False, True])
def test_a_visitor_with_events_whose_link_is_told_nowhere_goes_only_where_an_alias_was_refused(
    platform, is_refused  # noqa: F811
):  # fmt: skip
    said = message("alias", userId="staying-user-1", previousId=GONE) if is_refused else message(
        userId="staying-user-1", anonymousId=GONE)  # fmt: skip
    platform.send(message(userId=GONE), said, message(anonymousId=GONE, event="Looked"))
    platform.process()
    assert IdentityDecision.objects.filter(reason="two_identified_people").exists() == is_refused
    Event.objects.exclude(name="Looked").delete()
    finish(platform, erase(f"user_id:{GONE}"))
    assert Identifier.objects.filter(namespace="anonymous_id", value=GONE).exists() != is_refused
    assert Event.objects.filter(name="Looked").exists() != is_refused
    assert Identifier.objects.filter(value="staying-user-1").exists()
