"""`create_source` and `create_api_key` print a key, alone, that works."""

from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command

from cdp.models import ApiKey, Source
from martech.lib import clock

pytestmark = pytest.mark.django_db


def test_create_source_prints_the_write_key_alone(capsys):
    call_command("create_source", "shop", "--kind", "browser")
    source = Source.objects.get()
    assert capsys.readouterr().out == source.write_key + "\n"
    assert (source.name, source.kind) == ("shop", "browser")


def test_create_source_refuses_a_taken_name():
    call_command("create_source", "shop")
    with pytest.raises(CommandError, match="There is a source named 'shop'"):
        call_command("create_source", "shop")


def test_create_api_key_prints_the_key_alone(capsys, client):
    call_command("create_api_key", "bi", "--scopes", "profiles:read, sources:read")
    secret = capsys.readouterr().out.removesuffix("\n")
    assert ApiKey.objects.get().scopes == ["profiles:read", "sources:read"]
    assert client.get("/v1/profiles", headers={"Authorization": f"Bearer {secret}"}).status_code == 200


def test_create_api_key_may_give_it_an_end():
    call_command("create_api_key", "bi", "--scopes", "all", "--days", "3")
    left = ApiKey.objects.get().expires_at - clock.now()
    assert timedelta(days=3, minutes=-1) < left < timedelta(days=3)


def test_create_api_key_refuses_an_unknown_scope():
    with pytest.raises(CommandError, match="Unknown scopes: everything"):
        call_command("create_api_key", "bi", "--scopes", "everything")
