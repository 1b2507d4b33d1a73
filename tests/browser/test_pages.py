"""A person logs in, finds a profile, reads its timeline, looks into a dead letter and at the API's page."""

import os

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import PASSWORD
from tests.running import ROOT

pytestmark = pytest.mark.browser

# A README loads every picture that it shows.
MAX_BYTES = 300_000


@pytest.fixture
def shoot(page, tmp_path):
    """Return what takes a picture of the screen; with SCREENSHOTS=1 the pictures become those of the README."""
    directory = ROOT / "docs" / "screenshots" if os.environ.get("SCREENSHOTS") else tmp_path
    directory.mkdir(parents=True, exist_ok=True)

    def shoot(name):
        picture = page.screenshot(path=directory / f"{name}.png")
        assert len(picture) < MAX_BYTES

    return shoot


def story():
    """Yield the messages of a small shop's day."""
    yield from visit("anon-7f3a", 8, ["/", "/lamps", "/lamps/brass"])
    yield identify("user-1042", "anon-7f3a", 9, {"name": "Ann Archer", "email": "ann.archer@example.com",
                   "plan": "gold", "city": "Lisbon", "newsletter": True})  # fmt: skip
    for hour, total in ((9, 129.9), (13, 42.5), (17, 18.25)):
        yield order("user-1042", hour, total)
    for minute in range(40):
        yield {"type": "page", "userId": "user-1042", "messageId": f"p-{minute}", "name": f"Lamp {minute}",
               "timestamp": f"2026-11-02T10:{minute:02}:00Z", "properties": {"path": f"/lamps/{minute}"}}  # fmt: skip
    yield group("user-1042", 11, {"name": "Acme Lighting", "seats": 12, "industry": "Lighting"}, role="owner")
    people = ["Ben Baker", "Cleo Clark", "Dan Diaz", "Eva Ek", "Finn Ford", "Gia Gallo", "Hugo Hart", "Ida Ito"]
    for number, name in enumerate(people):
        user = f"user-{2000 + number}"
        email = name.lower().replace(" ", ".") + "@example.org"
        yield identify(user, f"anon-{number}", 10, {"name": name, "email": email})
        yield order(user, 11, 20 + 3.5 * number)
        if number < 3:
            yield group(user, 12 + number, {"seats": 13 + number}, role=["buyer", "admin", "viewer"][number])
    yield group("user-2002", 16, {}, left=True)


def visit(anonymous, hour, paths):
    for minute, path in enumerate(paths):
        yield {"type": "page", "anonymousId": anonymous, "messageId": f"{anonymous}-{minute}", "name": "Shop",
               "timestamp": f"2026-11-01T{hour:02}:{minute:02}:00Z", "properties": {"path": path}}  # fmt: skip


def identify(user, anonymous, hour, traits):
    return {"type": "identify", "userId": user, "anonymousId": anonymous, "messageId": f"i-{user}", "traits": traits,
            "timestamp": f"2026-11-01T{hour:02}:30:00Z"}  # fmt: skip


def group(user, hour, traits, **membership):
    context = {"membership": membership,
               "externalIds": [{"id": "0015g00000Acme", "type": "salesforce", "collection": "accounts"}]}  # fmt: skip
    return {"type": "group", "userId": user, "messageId": f"g-{user}-{hour}", "groupId": "acme", "traits": traits,
            "context": context, "timestamp": f"2026-11-02T{hour}:00:00Z"}  # fmt: skip


def order(user, hour, total):
    return {"type": "track", "userId": user, "event": "Order Completed", "messageId": f"o-{user}-{hour}",
            "timestamp": f"2026-11-01T{hour:02}:45:00Z",
            "properties": {"order_id": f"{user}-{hour}", "total": total, "currency": "EUR"}}  # fmt: skip


def broken():
    """Yield messages that cannot be processed."""
    for number in range(7):
        yield {"type": "track", "event": "Clicked", "messageId": f"nobody-{number}", "properties": {"n": number}}
    yield {"type": "track", "userId": "user-1042", "messageId": "nameless", "properties": {"email": "x@example.com"}}
    yield {"type": "shout", "userId": "user-1042", "messageId": "loud"}


def log_in(page, user="admin"):
    page.goto("/admin/")
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()


def open_list(page, name):
    page.get_by_role("link", name=name).first.click()


def send_story(platform, *more):
    """Send the shop's day and wait, as an API client does, until all of it can be read; return the write key."""
    write_key = platform.manage("create_source", "web shop")
    key = platform.manage("create_api_key", "browser test", "--scopes", "profiles:read")
    position = platform.send(write_key, *story(), *more)
    answer = httpx.get(
        f"{platform.address}/v1/profiles/user_id:user-1042/events",
        params={"min_position": position, "limit": 100}, headers={"Authorization": f"Bearer {key}"}, timeout=20,
    )  # fmt: skip
    assert (answer.status_code, len(answer.json()["results"])) == (200, 48)
    return write_key


def look_at_profiles(page, shoot):
    open_list(page, "Profiles")
    expect(page.get_by_role("link", name="Ann Archer")).to_be_visible()
    shoot("profiles")
    page.get_by_placeholder("Identifier, namespace:value").fill("anonymous_id:anon-7f3a")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Ann Archer").click()
    expect(page.get_by_role("heading", name="Ann Archer", exact=True)).to_be_visible()
    expect(page.get_by_text("ann.archer@example.com").first).to_be_visible()


def read_timeline(page, shoot):
    expect(page.locator(".mt-event")).to_have_count(25)
    page.locator(".mt-event", has_text="group").first.locator("summary").click()
    expect(page.get_by_text('"seats": 12')).to_be_visible()
    shoot("profile")
    page.get_by_role("link", name="Load older").click()
    expect(page.locator(".mt-event")).to_have_count(48)
    expect(page.get_by_role("link", name="Load older")).to_have_count(0)
    page.get_by_role("link", name="identify", exact=True).click()
    expect(page.locator(".mt-event")).to_have_count(1)


def look_at_an_account(page, shoot):
    page.get_by_role("link", name="Acme Lighting").click()
    expect(page.get_by_role("heading", name="Acme Lighting", exact=True)).to_be_visible()
    expect(page.get_by_text("0015g00000Acme").first).to_be_visible()
    expect(page.locator(".mt-members li")).to_have_count(4)
    expect(page.locator(".mt-members li", has_text="Ann Archer")).to_contain_text("owner")
    expect(page.locator(".mt-members li", has_text="Dan Diaz")).to_contain_text("2 Nov 2026 to 2 Nov 2026")
    expect(page.locator(".mt-event")).to_have_count(5)
    shoot("account")
    open_list(page, "Accounts")
    page.get_by_placeholder("Group id, namespace:value").fill("salesforce:0015")
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Acme Lighting")).to_be_visible()
    shoot("accounts")


def look_into_dead_letters(page, shoot):
    open_list(page, "Dead letters")
    expect(page.get_by_role("link", name="missing_id").first).to_be_visible()
    shoot("dead-letters")
    page.get_by_role("link", name="missing_event").first.click()
    page.locator("#result_list a").first.click()
    expect(page.get_by_text('"messageId": "nameless"')).to_be_visible()
    shoot("dead-letter")
    page.get_by_role("button", name="Replay").click()
    expect(page.get_by_text("would be put aside again: missing_event")).to_be_visible()
    page.get_by_role("link", name="Cancel").click()
    page.locator("tr", has_text="missing_id").first.get_by_role("button", name="Replay all").click()
    expect(page.get_by_text("7 letters tried")).to_be_visible()
    shoot("replay")
    page.get_by_role("button", name="Confirm").click()
    expect(page.get_by_text("7 dead letters given back to the log.")).to_be_visible()


def trace_events(page, shoot):
    page.get_by_role("link", name="Trace an event").click()
    page.get_by_label("Message id").fill("i-user-1042")
    page.get_by_role("button", name="Trace").click()
    expect(page.get_by_role("status")).to_contain_text("stored")
    expect(page.get_by_role("listitem").filter(has_text="email:ann.archer@example.com")).to_be_visible()
    shoot("trace")
    page.get_by_role("link", name="Ann Archer").click()
    page.locator(".mt-event", has_text="group").first.locator("summary").click()
    page.get_by_role("link", name="Trace this event").locator("visible=true").click()
    expect(page.get_by_role("status")).to_contain_text("g-user-1042-11")
    page.get_by_label("Message id").fill("nameless")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("quarantined")
    page.get_by_label("Message id").fill("never-sent")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Check the write key, the answer the SDK got")).to_be_visible()


def copy_a_call(page, shoot, write_key):
    open_list(page, "Sources")
    page.get_by_role("link", name="web shop").click()
    expect(page.get_by_text(write_key).first).to_be_visible()
    page.get_by_role("link", name="Python").click()
    expect(page.get_by_text("analytics.flush()")).to_be_visible()
    shoot("source")


def read_the_api(page, shoot):
    page.goto("/v1/docs")
    expect(page.get_by_text("/v1/profiles/{reference}/events")).to_be_visible()
    expect(page.get_by_text("/v1/batch")).to_be_visible()
    shoot("api")


def test_a_person_looks_around(page, platform, shoot):
    write_key = send_story(platform, *broken())
    page.goto("/admin/")
    shoot("login")
    log_in(page)
    expect(page.get_by_text("Events in the last hour")).to_be_visible()
    shoot("overview")
    look_at_profiles(page, shoot)
    read_timeline(page, shoot)
    look_at_an_account(page, shoot)
    look_into_dead_letters(page, shoot)
    trace_events(page, shoot)
    copy_a_call(page, shoot, write_key)
    read_the_api(page, shoot)


MAKE_VIEWER = """
from django.contrib.auth.models import Group, User
User.objects.create_user("vera", password={password!r}, is_staff=True).groups.add(Group.objects.get(name="viewer"))
"""


def test_a_viewer_sees_what_happened_and_no_names(page, platform):
    platform.manage("shell", "-c", MAKE_VIEWER.format(password=PASSWORD))
    send_story(platform)
    log_in(page, "vera")
    open_list(page, "Profiles")
    page.get_by_placeholder("Identifier, namespace:value").fill("user_id:user-1042")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="A•••").click()
    expect(page.get_by_text("a•••@e•••.com").first).to_be_visible()
    page.get_by_role("link", name="track", exact=True).click()
    expect(page.get_by_text("Order Completed").first).to_be_visible()
    assert "Archer" not in page.content()
    seen = page.request.get("/v1/profiles/user_id:user-1042").json()
    assert (seen["traits"]["name"], seen["traits"]["plan"]) == ("A•••", "gold")
    for hidden in ("API keys", "Users"):
        expect(page.get_by_role("link", name=hidden)).to_have_count(0)
