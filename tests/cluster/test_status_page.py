"""The status page in a real browser, served by a webhook on a real API server and a real store."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from devcluster.browser import browser, emulate
from devcluster.errors import DevClusterError
from tests.cluster.browsing import CONTRAST, NARROW, UNNAMED, WIDE, complaints, pictures
from tests.cluster.e2e import PATIENCE_SECONDS, Namespace, Semaphore, client_of, eventually, flags, opted_in, pod
from tests.cluster.gating import bind, gates, replica, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

    from devcluster.controlplane import ControlPlane
    from devcluster.stores import RedisServer
    from devcluster.webhook import WebhookProcess
    from tests.cluster.conftest import Registration

pytestmark = pytest.mark.cluster

PICTURES = Path(os.environ.get("STATUS_PAGE_PICTURES") or Path(tempfile.gettempdir()) / "status-page-pictures")
_names = itertools.count(1)


@pytest.fixture(scope="module")
def shown(account: Path, store: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebhookProcess]:
    """A webhook that serves the page."""
    with serving(replica(tmp_path_factory.mktemp("shown"), store, account, "--status-page")) as webhook:
        yield webhook


@pytest.fixture(scope="module")
def scene(control_plane: ControlPlane, shown: WebhookProcess, registration: Registration) -> Namespace:
    """Several semaphores: a full one with waiters, one with free permits, and one that is drawn together."""
    registration.use(shown)
    name = f"page-{next(_names)}"
    control_plane.create_namespace(name)
    namespace = Namespace(control_plane, name)
    crowded = [("database", 3, 6), ("licence", 5, 2), ("gpu.v2", 1, 1)]
    for key, length, count in crowded:
        for number in range(count):
            held = f"{key.replace('.', '-')}-{number}"
            namespace.create(pod(held, opted_in(key, length, 600)))
            if number < length:
                let_in(namespace, held)
                bind(namespace, held, f"node-{number % 2 + 1}")
    return namespace


def let_in(namespace: Namespace, name: str) -> None:
    eventually(lambda: not gates(namespace.get(name)), f"{name} is let in")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with ExitStack() as stack:
        try:
            driver = stack.enter_context(browser(tmp_path_factory.mktemp("browser")))
        except DevClusterError as error:
            pytest.skip(str(error))
        yield driver


@pytest.fixture
def page(driver: Chrome, shown: WebhookProcess, scene: Namespace) -> Iterator[Chrome]:
    """The page, freshly loaded, with the scene in it. It must not have complained."""
    emulate(driver, WIDE, "light")
    driver.get(f"http://127.0.0.1:{shown.metrics_port}/status")
    eventually(lambda: row(driver, f"{scene.name}/database"), "the page shows the semaphores")
    eventually(lambda: driver.find_element(By.ID, "connection").text == "live", "the page is live")
    yield driver
    assert complaints(driver) == []


def openers(driver: Chrome) -> dict[str, WebElement]:
    return {opener.text: opener for opener in driver.find_elements(By.CLASS_NAME, "opener")}


def row(driver: Chrome, name: str) -> list[str]:
    """Return what a semaphore's row says: length, free, held, waiting, oldest wait and conditions."""
    script = """for (const body of document.querySelectorAll("#semaphores > tbody"))
        if (body.querySelector(".opener").textContent === arguments[0])
            return [...body.querySelectorAll(".summary > td")].map((cell) => cell.textContent);
        return [];"""
    found: list[str] = driver.execute_script(script, name)
    return found


def details(driver: Chrome, name: str) -> str:
    """Return the text below an opened semaphore."""
    identity = openers(driver)[name].get_attribute("aria-controls")
    return driver.find_element(By.ID, identity or "").text


def keys(driver: Chrome, scene: Namespace) -> list[str]:
    """Return the keys of the scene's semaphores that are shown: other tests may have left some of theirs."""
    names = [opener.text.partition("/") for opener in driver.find_elements(By.CLASS_NAME, "opener")]
    return [key for namespace, _, key in names if namespace == scene.name]


def test_it_shows_each_semaphore_and_its_holders_and_waiters(page: Chrome, scene: Namespace) -> None:
    assert row(page, f"{scene.name}/database")[:4] == ["3", "0", "3", "3"]
    assert row(page, f"{scene.name}/licence")[:5] == ["5", "3", "2", "0", "-"]
    openers(page)[f"{scene.name}/database"].click()
    text = details(page, f"{scene.name}/database")
    order = [text.index(part) for part in ("database-0", "database-2", "Waiters", "database-3", "database-4")]
    assert order == sorted(order)
    assert "node-1" in text
    eventually(lambda: page.find_elements(By.CSS_SELECTOR, ".plot path.held[d*=H]"), "the plot has a line")
    label = page.find_element(By.CLASS_NAME, "plot").get_attribute("aria-label") or ""
    assert label.startswith("Held now 3, at most 3 within the last hour; waiting now 3")


def test_what_changes_is_shown_without_a_reload_and_focus_stays(
    page: Chrome, scene: Namespace, store: RedisServer
) -> None:
    opener = openers(page)[f"{scene.name}/database"]
    opener.click()
    scene.create(pod("database-late", opted_in("database", 3, 600)))
    eventually(lambda: row(page, f"{scene.name}/database")[3] == "4", "the new waiter is counted")
    eventually(lambda: "database-late" in details(page, f"{scene.name}/database"), "the new waiter is named")
    assert page.switch_to.active_element == opener
    scene.delete("database-late", grace=0)
    eventually(lambda: row(page, f"{scene.name}/database")[3] == "3", "the waiter has gone")
    scene.create(pod("new-0", opted_in("fresh", 1, 600)))
    eventually(lambda: row(page, f"{scene.name}/fresh")[2:3] == ["1"], "the new semaphore is shown")
    scene.delete("new-0", grace=0)
    eventually(lambda: not Semaphore(store, scene.name, "fresh").held, "its permit is free")
    eventually(lambda: not row(page, f"{scene.name}/fresh"), "it is not shown any more")


def test_search_finds_semaphores_by_name_holder_waiter_and_node(page: Chrome, scene: Namespace) -> None:
    search = page.find_element(By.ID, "search")
    for text, found in (("LICEN", ["licence"]), ("database-4", ["database"]), ("gpu-v2-0", ["gpu.v2"]), ("zzz", [])):
        search.clear()
        search.send_keys(text)
        assert keys(page, scene) == found
    assert page.find_element(By.ID, "empty").text == "No semaphore, holder or waiter of that name."
    search.send_keys(Keys.ESCAPE)
    assert keys(page, scene)[:3] == ["database", "gpu.v2", "licence"]


def test_it_is_used_by_keyboard_alone(page: Chrome, scene: Namespace) -> None:
    body = page.find_element(By.TAG_NAME, "body")
    body.send_keys("/")
    search = page.switch_to.active_element
    assert search.get_attribute("id") == "search"
    search.send_keys("database")
    assert search.get_attribute("value") == "database"
    visited = []
    for _ in range(4):
        page.switch_to.active_element.send_keys(Keys.TAB)
        active = page.switch_to.active_element
        outline = active.value_of_css_property("outline-style")
        visited.append((active.get_attribute("id") or active.text, outline))
        if active.text == f"{scene.name}/database":
            break
    assert visited[-1] == (f"{scene.name}/database", "solid")
    opener = page.switch_to.active_element
    for key, state in ((Keys.ENTER, "true"), (Keys.SPACE, "false")):
        opener.send_keys(key)
        assert opener.get_attribute("aria-expanded") == state


def test_it_can_be_read_by_everybody_light_and_dark_wide_and_narrow(page: Chrome, scene: Namespace) -> None:
    openers(page)[f"{scene.name}/database"].click()
    eventually(lambda: page.find_elements(By.CSS_SELECTOR, ".plot path.held[d*=H]"), "the plot has a line")
    grounds = set()
    for size, scheme in itertools.product((WIDE, NARROW), ("light", "dark")):
        emulate(page, size, scheme)
        assert page.execute_script(CONTRAST) == [], (size, scheme)
        assert page.execute_script(UNNAMED) == []
        grounds.add(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
        overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.execute_script(overflow) <= 0, (size, scheme)
    assert len(grounds) == 2
    pictures(page, PICTURES)


def test_names_are_never_markup(page: Chrome, scene: Namespace, store: RedisServer) -> None:
    """Whoever reaches the store can write what he likes into it."""
    client = client_of(store)
    evil = '<img src=x onerror="document.title=1">'
    inflight = f"inflight/{{{scene.name}/evil}}"
    # A reservation of this moment: the controller has no reason to ask for a pod of that name.
    record = {"pod": "<b id=evil>x</b>", "token": "1", "granted": int(time.time() * 1000)}
    client.hset(f"queue/{{{scene.name}/evil}}", "length", 1)
    client.hset(f"{inflight}/holders", evil, json.dumps(record))
    client.zadd(inflight, {evil: 4 * 10**12})
    try:
        eventually(lambda: row(page, f"{scene.name}/evil"), "it is shown")
        openers(page)[f"{scene.name}/evil"].click()
        assert "<b id=evil>x</b>" in details(page, f"{scene.name}/evil")
        assert evil in details(page, f"{scene.name}/evil")
        assert page.find_elements(By.CSS_SELECTOR, "img, #evil") == []
        assert page.title == "Semaphores"
    finally:
        client.delete(inflight, f"{inflight}/holders", f"queue/{{{scene.name}/evil}}")


def test_it_comes_back_after_a_restart_of_the_webhook(
    driver: Chrome, store: RedisServer, account: Path, tmp_path: Path, scene: Namespace
) -> None:
    webhook = replica(tmp_path / "restarted", store, account, "--status-page", "--wake-owners=false")
    with webhook:
        driver.get(f"http://127.0.0.1:{webhook.metrics_port}/status")
        eventually(lambda: row(driver, f"{scene.name}/database"), "the page shows the semaphores")
    state = driver.find_element(By.ID, "connection")
    eventually(lambda: state.text == "not connected: trying again", "the page says so")
    assert row(driver, f"{scene.name}/database")
    with webhook:
        eventually(lambda: state.text == "live", "the page is live again")
    driver.get("about:blank")
    complaints(driver)


def get(webhook: WebhookProcess, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", webhook.metrics_port, timeout=PATIENCE_SECONDS)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/status", "/status.json", "/status/status.js", "/status/history.json?semaphore=x"])
def test_nothing_but_its_own_is_let_into_the_page(shown: WebhookProcess, path: str) -> None:
    status, headers, body = get(shown, path)
    assert (status, bool(body)) == (200, True)
    assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
    assert get(shown, path, "POST")[0] == 405
    assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"https://" not in body


def test_it_is_only_beside_the_metrics_and_only_where_asked_for(
    shown: WebhookProcess, new_webhook: Callable[..., WebhookProcess], store: RedisServer
) -> None:
    plain = new_webhook(*flags("redlock", store, store))
    assert get(shown, "/metrics")[0] == 200
    assert shown.get(shown.probe_port, "/status")[0] == 404
    for path in ("/status", "/status.json", "/status/events", "/status/history.json"):
        assert plain.get(plain.metrics_port, path)[0] == 404


def test_too_many_viewers_are_refused_and_the_end_of_the_webhook_does_not_wait_for_them(
    store: RedisServer, account: Path, tmp_path: Path
) -> None:
    connections: list[Any] = []
    with replica(tmp_path / "busy", store, account, "--status-page") as webhook:
        for _ in range(65):
            connection = http.client.HTTPConnection("127.0.0.1", webhook.metrics_port, timeout=PATIENCE_SECONDS)
            connection.request("GET", "/status/events")
            connections.append((connection, connection.getresponse()))
        assert [answer.status for _, answer in connections].count(503) == 1
        assert connections[0][1].getheader("content-type") == "text/event-stream"
        began = time.monotonic()
    assert time.monotonic() - began < 8
    assert "webhook stopped" in webhook.log()
    for connection, answer in connections:
        answer.read()
        connection.close()
