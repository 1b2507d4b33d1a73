"""An id that others' events say as a number is the person's as it is as a text, where it is long enough."""

import json

import pytest
from django.db import connection

from cdp import archive, replay
from cdp.models import Event, Profile
from tests.platform import message
from tests.test_erasing_aliases import archived
from tests.test_erasure import erase, finish, platform  # noqa: F401 - a fixture

NUMBER = 4477881234
SAID = {"referrer": NUMBER, "list": [NUMBER, {"deep": NUMBER}], "longer": 44778812345, "age": 42, "name": "Bob"}
LEFT = {"referrer": "[erased]", "list": ["[erased]", {"deep": "[erased]"}], "longer": 44778812345, "age": 42,
        "name": "Bob"}  # fmt: skip


def told(platform):  # noqa: F811
    """Let another's event name the person and say the person's ids, a long and a short one, as numbers."""
    ids = [{"type": "user_id", "id": str(NUMBER), "collection": "users"}]
    platform.send(message("identify", userId=NUMBER, traits={"name": "Ann"}, context={
                      "externalIds": [{"type": "seat", "id": "42", "collection": "users"}]}),
                  message("identify", userId="bob-the-builder", traits=SAID, context={"externalIds": ids}),
                  message("identify", userId="carl-the-clerk", traits={"total": NUMBER}))  # fmt: skip
    platform.process()
    assert Profile.objects.get(identifiers__value="bob-the-builder").traits == SAID


@pytest.mark.parametrize("is_archived", [False, True])
def test_a_long_number_is_taken_out_of_others_events_and_traits(platform, is_archived):  # noqa: F811
    told(platform)
    if is_archived:
        archived()
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE event_stream_20260302")
    finish(platform, erase(f"user_id:{NUMBER}"))
    bob = Profile.objects.get(identifiers__value="bob-the-builder")
    assert (bob.traits, {name: held[0] for name, held in bob.registers.items()}) == (LEFT, LEFT)
    row = bob.identifiers.get(value="bob-the-builder")
    assert {name: held[0] for name, held in row.registers.items()} == LEFT
    if is_archived:
        said = [json.loads(one["properties"]) for one in archive.events(anchors=[row.pk])]
    else:
        said = list(Event.objects.filter(anchor=row).values_list("properties", flat=True))
    assert said == [LEFT]
    # Whose event does not name the person said a number, and nobody can say whose it is.
    assert Profile.objects.get(identifiers__value="carl-the-clerk").traits == {"total": NUMBER}
    assert replay.verify().examples == []
