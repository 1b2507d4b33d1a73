"""A link is called by the message that said it: an erasure takes a person out of that too, as out of its event."""

import pytest
from django.db import connection

from cdp import replay
from cdp.models import Edge, Event
from tests.platform import message
from tests.test_erasing_aliases import archived
from tests.test_erasure import erase, finish, platform  # noqa: F401 - a fixture

USER = "quillfeather-7781"


def linked(platform):  # noqa: F811
    """Let another's event that names the person, and one that does not, be called by the person's id."""
    theirs = {"externalIds": [{"type": "user_id", "id": USER, "collection": "users"}]}
    platform.send(message("identify", userId=USER, traits={"name": "Ann"}),
                  message("identify", userId="bob-the-builder", anonymousId="cookie-9", messageId=f"ref-by/{USER}",
                          traits={"email": "bob@example.com"}, context=theirs),
                  message("identify", userId="bob-the-builder", anonymousId="cookie-8", messageId="of-bob"),
                  )  # fmt: skip
    platform.process()
    assert Edge.objects.filter(message_id=f"ref-by/{USER}").count() > 2


@pytest.mark.parametrize("is_archived", [False, True])
def test_links_are_called_as_their_events_are(platform, is_archived):  # noqa: F811
    linked(platform)
    if is_archived:
        archived()
    finish(platform, erase(f"user_id:{USER}"))
    assert set(Edge.objects.values_list("message_id", flat=True)) == {"ref-by/[erased]", "of-bob"}
    assert set(Event.objects.values_list("message_id", flat=True)) == {"ref-by/[erased]", "of-bob"}
    assert [name for name, data in platform.stores().items() if USER.encode() in data] == []
    assert replay.verify().examples == []


def test_links_of_events_that_are_in_the_archive_alone_are_redacted_with_it(platform):  # noqa: F811
    linked(platform)
    archived()
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE event_stream_20260302")
    finish(platform, erase(f"user_id:{USER}"))
    assert set(Edge.objects.values_list("message_id", flat=True)) == {"ref-by/[erased]", "of-bob"}
    assert [name for name, data in platform.stores().items() if USER.encode() in data] == []
    assert replay.verify().examples == []


def test_a_link_keeps_what_its_event_is_called_that_does_not_name_the_person(platform):  # noqa: F811
    linked(platform)
    platform.send(message("identify", userId="bob-the-builder", anonymousId="cookie-7", messageId=f"for/{USER}"))
    platform.process()
    finish(platform, erase(f"user_id:{USER}"))
    assert set(Edge.objects.values_list("message_id", flat=True)) == {"ref-by/[erased]", "of-bob", f"for/{USER}"}
    assert replay.verify().examples == []
