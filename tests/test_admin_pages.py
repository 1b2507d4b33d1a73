"""The admin's pages open for those who may see them, and stay shut for the others."""

import pytest
from django.contrib.auth.models import User
from django.urls import reverse

from cdp.models import ApiKey, AuditEntry, Checkpoint, Erasure, EventImport, MergePolicy, Processor, TaskRun
from tests.factories import (
    NOON,
    make_account,
    make_api_key,
    make_dead_letter,
    make_decision,
    make_event,
    make_profile,
    make_source,
    make_user,
)

pytestmark = pytest.mark.django_db

LISTS = {
    "cdp_profile": {"viewer", "operator", "admin"},
    "cdp_account": {"viewer", "operator", "admin"},
    "cdp_source": {"viewer", "operator", "admin"},
    "cdp_deadletter": {"viewer", "operator", "admin"},
    "cdp_eventimport": {"operator", "admin"},
    "cdp_identitydecision": {"viewer", "operator", "admin"},
    "cdp_identityrules": {"viewer", "operator", "admin"},
    "cdp_traitdefinition": {"viewer", "operator", "admin"},
    "cdp_mergepolicy": {"viewer", "operator", "admin"},
    "cdp_event": {"viewer", "operator", "admin"},
    "cdp_checkpoint": {"viewer", "operator", "admin"},
    "cdp_processor": {"viewer", "operator", "admin"},
    "cdp_taskrun": {"viewer", "operator", "admin"},
    "cdp_apikey": {"admin"},
    "cdp_erasure": {"admin"},
    "cdp_auditentry": {"admin"},
    "auth_user": {"admin"},
    "django_celery_beat_periodictask": {"admin"},
    "django_celery_beat_intervalschedule": {"admin"},
    "django_celery_beat_crontabschedule": {"admin"},
}


@pytest.fixture
def rows():
    shop = make_source("shop")
    ann = make_profile(("email", "ann@example.com"), ("user_id", "user-1"), traits={"name": "Annabel"})
    visitor = make_profile(merged_into=ann)
    make_event(ann, shop)
    make_api_key("all")
    run = TaskRun.objects.create(id=ann.pk, task="cdp.tasks.x", status="failed", error="boom", started_at=NOON)
    processor = Processor.objects.create(
        log="redis:1", host="one", pid=17, backend_pid=4, backend_started_at=NOON, started_at=NOON, expires_at=NOON
    )
    return {
        "cdp_profile": ann,
        "cdp_account": make_account(("group_id", "acme")),
        "cdp_source": shop,
        "cdp_deadletter": make_dead_letter(shop),
        "cdp_eventimport": EventImport.objects.create(
            name="a.csv", sha256="0" * 64, source=shop, file_format="csv", size=1, created_at=NOON, updated_at=NOON
        ),
        "cdp_identitydecision": make_decision(ann, visitor, source=shop),
        "cdp_identityrules": 1,
        "cdp_traitdefinition": 1,
        "cdp_mergepolicy": MergePolicy.objects.create(trait="tags", policy="union"),
        "cdp_processor": processor,
        "cdp_checkpoint": Checkpoint.objects.create(
            log="redis:1", partition=3, position="5-0", updated_at=NOON, owner=processor.pk
        ),
        "cdp_taskrun": run,
        "cdp_apikey": ApiKey.objects.get(),
        "cdp_erasure": Erasure.objects.create(requested_by="x", requested_at=NOON),
        "cdp_auditentry": AuditEntry.objects.create(at=NOON, actor="x", action="y", object_type="z", object_id="1"),
    }


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
def test_lists_open_by_role(client, role):
    client.force_login(make_user(role))
    statuses = {name: client.get(reverse(f"admin:{name}_changelist")).status_code for name in LISTS}
    assert statuses == {name: 200 if role in roles else 403 for name, roles in LISTS.items()}


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
def test_pages_of_one_row_open_by_role(client, rows, role):
    client.force_login(make_user(role))
    statuses = {
        name: client.get(reverse(f"admin:{name}_change", args=[getattr(row, "pk", row)])).status_code
        for name, row in rows.items()
    }
    assert statuses == {name: 200 if role in LISTS[name] else 403 for name in rows}


@pytest.mark.usefixtures("rows")
def test_the_first_page_shows_figures_and_the_way_to_what_one_may_see(client):
    client.force_login(make_user("viewer"))
    page = client.get("/admin/").text
    assert "Events in the last hour" in page
    assert reverse("admin:cdp_profile_changelist") in page
    assert reverse("admin:cdp_apikey_changelist") not in page
    client.force_login(make_user("admin"))
    assert reverse("admin:cdp_apikey_changelist") in client.get("/admin/").text


def test_nobody_gets_in_without_logging_in(client):
    response = client.get(reverse("admin:cdp_profile_changelist"))
    assert (response.status_code, response.headers["Location"]) == (302, "/admin/login/?next=/admin/cdp/profile/")
    assert client.get("/admin/login/").status_code == 200


@pytest.mark.parametrize("model", ["profile", "account", "deadletter", "identitydecision", "checkpoint", "taskrun"])
def test_what_comes_by_events_is_not_added_changed_or_deleted(client, rows, model):
    client.force_login(make_user("", is_superuser=True))
    assert client.get(reverse(f"admin:cdp_{model}_add")).status_code == 403
    row = rows.get(f"cdp_{model}")
    if row:
        assert client.post(reverse(f"admin:cdp_{model}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403


def test_lists_are_a_bounded_number_of_queries(client, rows, django_assert_max_num_queries):
    for number in range(30):
        profile = make_profile(("user_id", f"u{number}"))
        make_decision(profile, rows["cdp_profile"])
        make_dead_letter(rows["cdp_source"])
    client.force_login(make_user("operator"))
    for name in ("cdp_profile", "cdp_deadletter", "cdp_identitydecision"):
        with django_assert_max_num_queries(14):
            client.get(reverse(f"admin:{name}_changelist"))


def test_admins_make_users_who_can_log_in_and_no_superusers(client):
    admin = make_user("admin")
    client.force_login(admin)
    answer = client.post(
        reverse("admin:auth_user_add"),
        {"username": "vera", "password1": "correct horse battery", "password2": "correct horse battery",
         "usable_password": "true", "groups": [admin.groups.get().pk], "is_superuser": "on"},
    )  # fmt: skip
    assert answer.status_code == 302
    vera = User.objects.get(username="vera")
    assert (vera.is_staff, vera.is_superuser, vera.groups.get().name) == (True, False, "admin")
    change = reverse("admin:auth_user_change", args=[admin.pk])
    client.post(change, {"username": admin.username, "is_superuser": "on", "is_active": "on"})
    admin.refresh_from_db()
    assert admin.is_superuser is False


def test_admins_do_not_touch_superusers(client):
    root = make_user("", is_superuser=True)
    client.force_login(make_user("admin"))
    password = reverse("admin:auth_user_password_change", args=[root.pk])
    new = {"password1": "correct horse battery", "password2": "correct horse battery"}
    assert client.post(password, new).status_code == 403
    change = reverse("admin:auth_user_change", args=[root.pk])
    assert client.post(change, {"username": "mine", "is_active": "on"}).status_code == 403
    assert client.post(reverse("admin:auth_user_delete", args=[root.pk]), {"post": "yes"}).status_code == 403


def test_a_periodic_task_can_be_looked_at_and_changed(client):
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    every = IntervalSchedule.objects.create(every=1, period="minutes")
    task = PeriodicTask.objects.create(name="tidy", task="cdp.tasks.tidy", interval=every)
    client.force_login(make_user("admin"))
    page = client.get(reverse("admin:django_celery_beat_periodictask_change", args=[task.pk]))
    assert page.status_code == 200
    assert "tidy" in page.text
    assert client.get(reverse("admin:django_celery_beat_periodictask_add")).status_code == 200
    assert client.get(reverse("admin:django_celery_beat_intervalschedule_change", args=[every.pk])).status_code == 200


@pytest.mark.usefixtures("rows")
def test_checkpoints_say_who_holds_them(client):
    client.force_login(make_user("viewer"))
    assert "one:17" in client.get(reverse("admin:cdp_checkpoint_changelist")).text
    page = client.get(reverse("admin:cdp_processor_changelist")).text
    assert "working" in page
    assert "shared" in page
