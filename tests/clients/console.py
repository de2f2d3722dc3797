"""/console in a real browser: who only looks signs in, and sees a coupon within seconds of its being issued; nothing leaves the machine, and
nothing is complained of.

python console.py http://127.0.0.1:8080 [directory for screenshots]      needs what browser.py does
"""

from browser import assert_fits, base, chromium, shoot, watched


def issue(playwright):
    """Asks for four coupons, and returns how many were issued and the request's id."""
    api = playwright.request.new_context(http_credentials={"username": "store.server", "password": "server123"})
    body = {"seriesIds": [101, 104, 106, 999], "customer": {"id": "566881933"}}
    answer = api.post(f"{base}/v2/coupon/bulk/issue", data=body)
    assert answer.status == 200, answer.text()
    told = answer.json()
    assert any("result" in entity for entity in told["response"]), told
    api.dispose()
    return told["totalCount"] - told["failureCount"], answer.headers["x-cap-request-id"]


def number(page):
    """Coupons issued in the last hour, as the first tile has it."""
    return int(page.locator(".tiles .big").first.inner_text().replace(",", ""))


def visit(playwright, browser, width, scheme):
    desk = {"username": "office.desk", "password": "office123"}
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, http_credentials=desk)
    page = watched(context.new_page())
    answer = page.goto(f"{base}/console")
    assert answer.status == 200, answer.status
    page.get_by_role("heading", name="Demo Retail").wait_for()
    before = number(page)
    issued, request_id = issue(playwright)
    # The page asks again by itself: counts reach the database within 5 seconds, and the page within 10 more.
    page.locator("#live code", has_text=request_id).wait_for(timeout=30_000)
    assert number(page) >= before + issued, f"{before} and {issued} are {number(page)}"
    assert_fits(page, width)
    shoot(page, f"console-{width}-{scheme}")
    page.get_by_role("button", name="Pause updates").click()
    page.get_by_text("Updates are paused.").wait_for()
    page.get_by_label("Series id").fill("104, 4711")
    page.get_by_role("button", name="Find").click()
    page.get_by_text("There is no series 4711.").wait_for()
    assert page.locator("#series-104").count() == 1 and page.locator("#series-101").count() == 0
    shoot(page, f"found-{width}-{scheme}")
    context.close()
    print(f"{width} px, {scheme}: {issued} issued and told, with the failures of {request_id}")


with chromium() as (playwright, browser):
    stranger = browser.new_context().request.get(f"{base}/console")
    assert stranger.status == 401 and "Basic" in stranger.headers["www-authenticate"], stranger.status
    for width, scheme in (1280, "light"), (390, "dark"):
        visit(playwright, browser, width, scheme)
