"""A person changes a profile in the browser, and the fast read shows it."""

import re

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.test_pages import log_in

pytestmark = pytest.mark.browser

POLICIES = """
from cdp import merge_policies
for trait, policy in (("tags", "union"), ("points", "counter"), ("city", "ask")):
    merge_policies.create(trait=trait, policy=policy)
"""


def test_a_person_changes_a_profile(page, platform):
    platform.manage("shell", "-c", POLICIES)
    shop, crm = (platform.manage("create_source", name) for name in ("web shop", "CRM"))
    key = platform.manage("create_api_key", "browser test", "--scopes", "profiles:read")
    for number, (source, city) in enumerate([(shop, "Bonn"), (crm, "Kiel")]):
        traits = {"name": "Ann Archer", "plan": "gold", "tags": ["vip", "new"], "points": {"$add": 20}, "city": city,
                  "consent": {"email": {"granted": True, "evidence": {"form": "signup"}}}}  # fmt: skip
        position = platform.send(
            source, {"type": "identify", "userId": "ann", "messageId": f"i-{number}", "traits": traits}
        )

    def read(**query):
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.get(f"{platform.address}/v1/profiles/user_id:ann", params=query, headers=headers, timeout=20)
        return answer.json()

    found = read(min_position=position)
    log_in(page)
    page.goto(f"/admin/cdp/profile/{found['id']}/change/")
    expect(page.get_by_role("status")).to_contain_text("Sources disagree on city")
    page.get_by_role("link", name="Change", exact=True).click()
    page.get_by_label("plan", exact=True).fill("platinum")
    page.get_by_label("tags", exact=True).fill("vip\nold")
    page.get_by_label("points: add").fill("-5")
    page.get_by_label(re.compile("Bonn")).check()
    page.get_by_label("email", exact=True).select_option("withdraw")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("The profile is changed.")).to_be_visible()
    expect(page.get_by_text("refused")).to_be_visible()
    after = read()
    assert after["traits"] == {"name": "Ann Archer", "plan": "platinum", "tags": ["old", "vip"], "points": 35,
                               "city": "Bonn"}  # fmt: skip
    assert (after["consent"]["email"]["granted"], after["version"]) == (False, found["version"] + 1)
