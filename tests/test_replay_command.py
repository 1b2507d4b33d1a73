"""`manage.py replay_dead_letters`."""

import json
from contextlib import closing
from io import StringIO

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from cdp.log import open_log
from cdp.models import DeadLetter
from tests.factories import make_dead_letter, make_source

pytestmark = pytest.mark.django_db


@pytest.fixture
def letters():
    shop = make_source("shop")
    click = b'{"type":"track","userId":"u1","event":"Clicked","messageId":"m-1"}'
    return [make_dead_letter(shop, body=body, message_id=f"m-{number}") for number, body in enumerate((click, b"{"))]


@pytest.fixture
def appended():
    """Return what counts the entries that were appended since the test began."""
    with closing(open_log(settings.CONFIG.log_url, partitions=settings.CONFIG.log_partitions)) as log:
        start = {partition: log.newest(partition) for partition in range(log.partitions)}
        yield lambda: sum(log.lag(partition, position) for partition, position in start.items())


class Terminal(StringIO):
    """What somebody sits before."""

    def isatty(self):
        return True


def replay(*arguments, to=StringIO):
    output = to()
    call_command("replay_dead_letters", *arguments, stdout=output)
    return output.getvalue()


def statuses():
    return list(DeadLetter.objects.order_by("pk").values_list("status", flat=True))


@pytest.mark.usefixtures("letters")
def test_a_dry_run_says_what_would_become_of_them(appended):
    told = "2 found\n1 would be stored\n1 would be put aside again: malformed\n"
    assert replay("--reason", "missing_id", "--dry-run") == told
    assert json.loads(replay("--source", "shop", "--dry-run", "--json")) == {
        "matched": 2, "would_store": 1, "would_repeat": 0, "would_reject": {"malformed": 1}, "more": False,
    }  # fmt: skip
    assert (appended(), statuses()) == (0, ["new", "new"])


@pytest.mark.usefixtures("letters")
def test_with_yes_they_are_given_back(appended):
    assert replay("--message-id", "m-0", "--yes") == "1 given back to the log\n"
    assert json.loads(replay("--since", "2026-11-01", "--until", "2026-11-02", "--yes", "--json")) == {
        "matched": 1, "replayed": 1, "more": False,
    }  # fmt: skip
    assert (appended(), statuses()) == (2, ["replaying", "replaying"])


def test_ids_and_a_limit(letters, appended):
    both = ",".join(str(letter.pk) for letter in letters)
    assert replay("--ids", both, "--limit", "1", "--yes") == "1 given back to the log; there are more\n"
    assert (appended(), statuses()) == (1, ["replaying", "new"])


@pytest.mark.usefixtures("letters")
@pytest.mark.parametrize(("answer", "given"), [("y", 2), ("yes", 2), ("n", 0), ("", 0)])
def test_on_a_terminal_it_asks(monkeypatch, appended, answer, given):
    monkeypatch.setattr("builtins.input", lambda _question: answer)
    assert "1 would be put aside again: malformed" in replay("--reason", "missing_id", to=Terminal)
    assert appended() == given


@pytest.mark.usefixtures("letters")
def test_where_nobody_can_be_asked_it_wants_to_be_told(appended):
    with pytest.raises(CommandError, match="add --yes, or --dry-run"):
        replay("--reason", "missing_id")
    with pytest.raises(CommandError, match="add --yes, or --dry-run"):
        replay("--reason", "missing_id", "--json", to=Terminal)
    assert appended() == 0


@pytest.mark.usefixtures("letters")
def test_what_it_cannot_do_it_says(settings):
    from dataclasses import replace

    with pytest.raises(CommandError, match="Say which letters: --ids, --reason"):
        replay("--yes")
    with pytest.raises(CommandError, match="There is no source 'shopp'"):
        replay("--source", "shopp", "--yes")
    settings.CONFIG = replace(settings.CONFIG, log_url="redis://127.0.0.1:1/0")
    with pytest.raises(CommandError, match="The log does not answer"):
        replay("--reason", "missing_id", "--yes")
    assert statuses() == ["new", "new"]
