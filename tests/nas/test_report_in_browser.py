"""The report as a person uses it: a real browser, driven through its debugging pipe, moves the slider and reads the page."""

from __future__ import annotations

import html
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nas.pages.contents import read_contents
from nas.pages.figure import payload
from nas.reporting import write_report
from nas.runs import Run
from tests.nas.test_reporting import make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]


class Browser:
    """One page in a headless Chromium; commands go through a pipe, so no port is opened."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._rest, self._ids = to, back, b"", itertools.count(1)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda event: event.get("id") == number)
        assert "error" not in answer, answer
        return answer["result"]  # type: ignore[no-any-return]

    def _until(self, wanted: Any) -> dict[str, Any]:
        while True:
            while b"\0" not in self._rest:
                more = os.read(self._back, 1 << 16)
                assert more, "the browser has gone"
                self._rest += more
            text, _, self._rest = self._rest.partition(b"\0")
            event: dict[str, Any] = json.loads(text)
            if wanted(event):
                return event

    def open(self, page: Path) -> None:
        self.call("Page.navigate", url=page.as_uri())
        while self.ask("document.readyState") != "complete" or "report" not in self.ask("location.href"):
            time.sleep(0.05)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def press(self, key: str) -> None:
        codes = {"Home": 36, "End": 35, "ArrowRight": 39, "ArrowLeft": 37, "Tab": 9, "Enter": 13}
        for kind in ("keyDown", "keyUp"):
            more = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **more)

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser that ends with the block."""
    assert CHROMIUM
    (theirs, to), (back, given) = os.pipe(), os.pipe()
    flags = [f"--{flag}" for flag in ["headless", "no-first-run", f"user-data-dir={profile}", "remote-debugging-pipe"]]
    flags += [f"--disable-{feature}" for feature in QUIET]
    flags += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    shell = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{given}', "bash"]
    process = subprocess.Popen([*shell, CHROMIUM, *flags], pass_fds=(theirs, given), stderr=subprocess.DEVNULL)
    os.close(theirs)
    os.close(given)
    try:
        yield Browser(to, back)
    finally:
        os.close(to)
        os.close(back)
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = make_run(tmp_path_factory.mktemp("browser") / "a run")
    write_report(made)
    return made


@pytest.fixture(scope="module")
def page(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(run.file("report.html"))
        yield browser


COMMAND = "document.getElementById('command').textContent"


def test_the_slider_moves_by_keyboard_and_names_the_command(run: Run, page: Browser) -> None:
    networks = payload(read_contents(run))["networks"]
    page.ask("document.getElementById('budget').focus()")
    page.press("Home")
    fastest = min(networks, key=lambda network: network["latency"])
    assert page.ask(COMMAND) == fastest["command"] == f"nas export '{run.path}' --pick {fastest['id']}"
    page.press("End")
    best = max(networks, key=lambda network: network["accuracy"])
    assert page.ask(COMMAND) == best["command"]
    seen = {page.ask(COMMAND)}
    for _ in range(300):
        page.press("ArrowLeft")
        budget, command = float(page.ask("document.getElementById('budget').value")), page.ask(COMMAND)
        within = [network for network in networks if network["latency"] <= budget * (1 + 1e-9)]
        assert command == max(within, key=lambda network: network["accuracy"])["command"]
        seen.add(command)
    assert len(seen) > 2
    assert best["id"] not in page.ask("document.getElementById('answer').textContent")


def test_every_control_is_reached_by_the_tabulator_and_enter_picks(run: Run, page: Browser) -> None:
    page.ask("document.activeElement.blur(); document.getElementById('budget').focus()")
    reached = []
    for _ in range(12):
        page.press("Tab")
        reached.append(page.ask("document.activeElement.id || document.activeElement.dataset.id || ''"))
    ids = [row.id for row in read_contents(run).rows]
    assert "copy" in reached
    assert [name for name in reached if name in ids] == ids
    page.ask(f"document.querySelector('[data-id=\"{ids[3]}\"]').focus()")
    page.press("Enter")
    assert page.ask(COMMAND).endswith(ids[3])


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_does_not_scroll_sideways(run: Run, page: Browser, width: int) -> None:
    page.size(width, 900)
    page.open(run.file("report.html"))
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask("document.querySelectorAll('#front .main-svg').length") > 0


def test_nothing_is_loaded_and_nothing_fails(run: Run, page: Browser) -> None:
    assert page.ask("performance.getEntriesByType('resource').length") == 0
    assert html.unescape(page.ask("document.title")) == "tiny on fake"
    assert run.file("report.html").stat().st_size < 6e6
