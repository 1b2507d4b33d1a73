"""The three roles exist after a migration, with what they may do."""

import pytest
from django.apps import apps
from django.contrib.auth.models import Group

from cdp import roles


def permissions_of(role):
    return {
        f"{permission.content_type.app_label}.{permission.codename}"
        for permission in Group.objects.get(name=role).permissions.select_related("content_type")
    }


@pytest.mark.django_db
@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
def test_a_migration_leaves_the_role_with_all_of_its_permissions(role):
    assert permissions_of(role) == roles.ROLES[role]


@pytest.mark.django_db
def test_a_role_is_brought_back_to_what_the_code_says():
    group = Group.objects.get(name="viewer")
    group.permissions.set(Group.objects.get(name="admin").permissions.all())

    roles.assign(apps=apps)

    assert permissions_of("viewer") == roles.ROLES["viewer"]


def test_only_operators_and_admins_see_personal_data():
    assert {role for role, names in roles.ROLES.items() if "cdp.view_personal_data" in names} == {"operator", "admin"}
