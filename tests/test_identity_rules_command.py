"""`manage.py identity_rules`."""

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from cdp.models import IdentityRules
from tests.platform import message


@pytest.fixture
def people(own_database, core):
    """Return the core with one person of two addresses, on Django's database."""
    for address in ("ann@example.com", "archer@example.com"):
        core.apply(message("identify", userId="user-ann", traits={"email": address}))
    return core


def run(*arguments):
    output = StringIO()
    call_command("identity_rules", *map(str, arguments), stdout=output)
    return output.getvalue().strip()


def test_rules_are_shown_changed_tried_and_published(people, tmp_path):
    rules, file = json.loads(run()), tmp_path / "rules.json"
    assert set(rules) == {"user_id", "email", "anonymous_id", "*"}
    rules["email"]["limit"] = 1
    file.write_text(json.dumps(rules))
    assert run("dry-run", file) == "would split 1, merge 0; largest cluster 3 → 2"
    assert json.loads(run("dry-run", file, "--json"))["split"] == 1
    assert IdentityRules.objects.count() == 1
    assert run("publish", file, "--note", "One address") == "version 2 applied: 1 split, 0 merged"
    row = IdentityRules.objects.get(pk=2)
    assert (row.status, row.note, row.author.partition(":")[0]) == ("applied", "One address", "command")
    assert json.loads(run("show")) == row.namespaces
    assert people.profile("email:ann@example.com")["id"] != people.profile("email:archer@example.com")["id"]
    assert run("apply") == "Nothing waits to be applied, or a worker is at it."
    assert run("apply", "--json") == "null"


def test_what_cannot_be_says_why(people, tmp_path):
    file = tmp_path / "rules.json"
    for arguments, words in (
        (["dry-run"], "identity_rules dry-run needs a file with the rules."),
        (["show", file], "identity_rules show takes no file."),
        (["dry-run", file], "The rules cannot be read from"),
    ):
        with pytest.raises(CommandError, match=words):
            run(*arguments)
    file.write_text('{"email": {}}')
    with pytest.raises(CommandError, match="has to be among them, for all others"):
        run("publish", file)
