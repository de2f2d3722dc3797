"""/docs in a real browser: credentials are entered, a coupon is issued; nothing leaves the machine, and nothing is complained of.

python docs.py http://127.0.0.1:8080 [directory for screenshots]      needs what browser.py does
"""

import json
import re
from urllib.parse import urlsplit

from browser import assert_fits, base, chromium, shoot, watched


def authorize(page, scheme, fields):
    page.get_by_role("button", name="Authorize").first.click()
    box = page.locator(".modal-ux .auth-container").filter(has=page.locator("h4", has_text=re.compile(f"^{scheme}\\b")))
    for name, value in fields.items():
        box.locator(f"input[name={name}], input[data-name={name}]").fill(value)
    box.locator("button.authorize").click()
    box.locator("button", has_text="Logout").wait_for()
    page.locator(".modal-ux .close-modal").click()


def issue(page):
    """Issues the example as it stands, and returns status and body."""
    operation = page.locator("#operations-Issuing-issueCoupons")
    if operation.locator(".try-out__btn").count() == 0:
        operation.locator(".opblock-summary-control").click()
    if operation.locator(".try-out__btn.cancel").count() == 0:
        operation.locator(".try-out__btn").click()
    with page.expect_response(lambda response: urlsplit(response.url).path == "/v2/coupon/bulk/issue") as answered:
        operation.locator("button.execute").click()
    operation.locator(".live-responses-table .response-col_status", has_text=str(answered.value.status)).wait_for()
    return answered.value.status, answered.value.json()


def visit(browser, width, scheme, fields):
    page = watched(browser.new_page(viewport={"width": width, "height": 900}))
    page.goto(f"{base}/docs")
    page.locator("#operations-Issuing-issueCoupons").wait_for()
    shoot(page, f"docs-{width}")
    authorize(page, scheme, fields)
    status, body = issue(page)
    codes = [entity["result"]["code"] for entity in body["response"] if "result" in entity]
    assert status == 200 and len(codes) == 1, json.dumps(body)
    assert_fits(page, width)
    shoot(page, f"issued-{width}")
    page.close()
    print(f"{width} px, {scheme}: a coupon was issued")


with chromium() as (_, browser):
    visit(browser, 1280, "basic", {"username": "store.server", "password": "server123"})
    visit(browser, 390, "oauth2", {"clientId": "crm", "clientSecret": "crm-secret"})
