"""A person uploads a file in Chromium, says what its columns are, and sees it go in."""

import pytest
from playwright.sync_api import expect

from tests.browser.test_pages import log_in, open_list, shoot  # noqa: F401 - a fixture

pytestmark = pytest.mark.browser

ROWS = "".join(f"c-{number % 40},Order Completed,2019-03-{number % 28 + 1:02},{number}.50\n" for number in range(400))
CARRY_ON = """
from cdp.imports import uploads
from cdp.models import EventImport
assert not uploads.carry_on(EventImport.objects.get().pk, seconds=60)
"""


@pytest.fixture
def orders(tmp_path):
    path = tmp_path / "orders.csv"
    path.write_text(f"customer,event,day,total\n{ROWS},Order Completed,2019-03-01,1.00\n")
    return path


def test_a_file_goes_from_the_disk_into_the_log(page, platform, shoot, orders):  # noqa: F811
    platform.manage("create_source", "old shop")
    log_in(page)
    open_list(page, "Imports")
    page.get_by_role("link", name="Add event import").first.click()
    page.get_by_label("Source").select_option("old shop")
    page.locator("input[type=file]").set_input_files(orders)
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("401 rows checked: 0 would go in")).to_be_visible()
    page.get_by_label("Field of customer").fill("userId")
    page.get_by_label("Field of day").fill("timestamp")
    page.get_by_label("Type of total").select_option("number")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_text("401 rows checked: 400 would go in")).to_be_visible()
    page.get_by_text("Message id").scroll_into_view_if_needed()
    shoot("import-mapping")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text("The import has begun.")).to_be_visible()
    platform.manage("shell", "-c", CARRY_ON)
    expect(page.get_by_text("100% read")).to_be_visible()
    shoot("import")
    errors = page.request.get(page.get_by_role("link", name="Download them").get_attribute("href"))
    assert errors.text().startswith('{"line":402,"reason":"missing_id"')
    open_list(page, "Imports")
    expect(page.get_by_role("link", name="orders.csv")).to_be_visible()
    shoot("imports")
