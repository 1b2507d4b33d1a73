"""A person looks at who is who, takes a profile apart from the graph, and tries other rules."""

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.test_pages import log_in, open_list, shoot  # noqa: F401 - shoot is a fixture

pytestmark = pytest.mark.browser


def identify(user, number, traits=None, **ids):
    return {"type": "identify", "userId": user, "messageId": f"i-{user}-{number}", "traits": traits or {},
            "timestamp": f"2026-11-01T09:{number:02}:00Z", **ids}  # fmt: skip


def household():
    """Yield the messages of a couple who share a laptop, and of somebody with several devices."""
    yield identify("user-1042", 1, {"name": "Ann Archer", "email": "ann.archer@example.com", "plan": "gold"},
                   anonymousId="phone-7f3a")  # fmt: skip
    yield identify("user-1042", 2, {"email": "ann@work.example"}, anonymousId="laptop-19c2")
    yield identify("user-1042", 3, anonymousId="tablet-55e0",
                   context={"externalIds": [{"type": "loyalty_card", "id": "4711-0815"}]})  # fmt: skip
    for number in range(3):
        yield {"type": "track", "anonymousId": "tablet-55e0", "event": "Clicked", "messageId": f"t-{number}",
               "timestamp": f"2026-11-02T10:{number:02}:00Z"}  # fmt: skip
    yield identify("user-2000", 4, {"name": "Ben Baker", "email": "ben@example.org"}, anonymousId="laptop-19c2")


@pytest.fixture
def people(platform):
    write_key = platform.manage("create_source", "web shop")
    key = platform.manage("create_api_key", "browser test", "--scopes", "profiles:read")
    position = platform.send(write_key, *household())
    answer = httpx.get(
        f"{platform.address}/v1/profiles/user_id:user-2000", params={"min_position": position},
        headers={"Authorization": f"Bearer {key}"}, timeout=20,
    )  # fmt: skip
    assert answer.status_code == 200


def look_at_the_graph(page, shoot):  # noqa: F811
    open_list(page, "Profiles")
    page.get_by_role("link", name="Ann Archer").click()
    expect(page.locator(".mt-box")).to_have_count(8)
    expect(page.locator(".mt-near")).to_have_count(1)
    expect(page.locator(".mt-refused")).to_have_count(1)
    page.locator(".mt-curve:not(.mt-refused)").first.click(force=True)
    expect(page.locator(".mt-evidence tr:target")).to_have_count(1)
    page.evaluate("scrollTo(0, 0)")
    shoot("identity-graph")


def take_apart(page, shoot):  # noqa: F811
    page.get_by_label("tablet-55e0").check()
    page.get_by_role("button", name="Preview taking apart").click()
    expect(page.get_by_text("Nothing has changed yet.")).to_be_visible()
    expect(page.get_by_text("becomes a profile · 4 events")).to_be_visible()
    shoot("unmerge")
    page.get_by_label("Note").fill("The tablet is her son's")
    page.get_by_role("button", name="Take apart").click()
    expect(page.get_by_text("1 identifier is this profile's now. The others stayed with Ann Archer.")).to_be_visible()
    expect(page.get_by_text("The tablet is her son's")).to_be_visible()
    page.locator(".mt-near").first.click()
    expect(page.get_by_role("heading", name="Ann Archer", exact=True)).to_be_visible()
    page.get_by_role("button", name="Lift").click()
    page.get_by_role("button", name="Lift").click()
    expect(page.get_by_text("The unmerge is lifted: evidence decides again who is who.")).to_be_visible()
    expect(page.locator(".mt-box")).to_have_count(8)


def review(page, shoot):  # noqa: F811
    open_list(page, "Identity decisions")
    page.get_by_role("link", name="refusal").first.click()
    shoot("identity-decision")
    page.get_by_role("button", name="Mark as reviewed").click()
    expect(page.get_by_text("1 decision marked as reviewed.")).to_be_visible()


def change_the_rules(page, platform, shoot):  # noqa: F811
    open_list(page, "Identity rules")
    expect(page.get_by_text("As from the start")).to_be_visible()
    shoot("identity-rules")
    page.get_by_role("link", name="Edit").click()
    page.get_by_label("Limit of email").fill("1")
    page.get_by_label("Blocked values of loyalty_card").or_(page.get_by_label("Blocked values of anonymous_id")).fill(
        "kiosk-1\nkiosk-2"
    )
    shoot("identity-rules-edit")
    page.get_by_role("button", name="Dry run").click()
    expect(page.get_by_text("These rules would split 1, merge 0; largest cluster 7 → 6.")).to_be_visible()
    shoot("identity-rules-draft")
    page.get_by_role("button", name="Publish").click()
    expect(page.locator("[data-progress]")).to_be_visible()
    platform.manage("identity_rules", "apply")
    expect(page.get_by_text("profiles looked at: 1 split, 0 merged.")).to_be_visible()
    expect(page.locator("[data-progress]")).to_have_count(0)


@pytest.mark.usefixtures("people")
def test_a_person_decides_who_is_who(page, platform, shoot):  # noqa: F811
    log_in(page)
    look_at_the_graph(page, shoot)
    take_apart(page, shoot)
    review(page, shoot)
    change_the_rules(page, platform, shoot)
