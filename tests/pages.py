"""MLflow's pages and the report in a real Chromium, which Playwright drives.

A page is looked at when what was asked for is there and the picture stands still, since MLflow's
pages ask the server again and again and are never idle. The browser's own network log tells whom
pages and their workers asked; Chromium itself, which asks its maker for dictionaries and accounts,
reaches this machine alone. Leaves out which pages there are (`tests/screenshots.py`) and installing
Chromium.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit

from PIL import Image

COMMAND = Path(sys.executable).parent / "banditgrid"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1280, 800
PATIENCE = 60.0  # seconds that a page may take to show what is asked for
STILL = 0.5  # seconds between two equal pictures
CURVE = ".js-plotly-plot .scatterlayer .trace path.js-line"
COLOURS = 128  # of a picture that is kept
# MLflow without users of its own answers so to every page, and the page goes on.
EXPECTED = "/ajax-api/2.0/mlflow/users/current"
BANNERS = ("Something went wrong", "Error while loading", "Error loading", "Page not found")
# What a person has after closing the panel that a browser shows at first: the server keeps none.
CLOSED = {
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
}
SETTINGS = """if (location.protocol.startsWith('http'))
for (const [k, v] of Object.entries({})) localStorage.setItem(k, v)"""
OWN = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
ITSELF = "not an origin"  # who asks, in the log, where no page does


def chromium() -> str | None:
    """The browser of this machine, if it has one."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


@contextmanager
def served(store: Path, port: int, log: Path) -> Iterator[str]:
    """`banditgrid ui` over a store: its address, as long as it is used."""
    address = f"http://127.0.0.1:{port}"
    command = [str(COMMAND), "ui", "--store", str(store), "--port", str(port)]
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as server,
    ):
        try:
            _wait_for(server, address, log)
            yield address
        finally:
            server.terminate()


def _wait_for(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    until = time.monotonic() + 3 * PATIENCE
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"`banditgrid ui` does not answer at {address}: {log.read_text()[-2000:]}")


class Browser:
    """A context manager: Chromium with an empty profile, and what it met.

    `troubles` are errors of scripts, answers of 400 and above, and banners of errors; `asked`,
    known after the end, are the hosts that pages wanted.
    """

    def __init__(self, folder: Path, width: int = WIDTH) -> None:
        self.troubles: list[str] = []
        self.asked: set[str] = set()
        self.width = width
        self._log = folder / "network.json"

    def __enter__(self) -> Browser:
        from playwright.sync_api import sync_playwright

        root = ["--no-sandbox"] if os.geteuid() == 0 else []  # else Chromium refuses to start
        self._driver = sync_playwright().start()
        try:
            self._chromium = self._driver.chromium.launch(
                executable_path=chromium(), args=[*OWN, *root, f"--log-net-log={self._log}"]
            )
            self.page = self._chromium.new_page()
        except BaseException:
            self._driver.stop()
            raise
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.add_init_script(SETTINGS.format(json.dumps(CLOSED)))
        self.page.on("pageerror", lambda error: self.troubles.append(f"{self.page.url}: {error}"))
        self.page.on("response", self._answered)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._chromium.close()
        finally:
            self._driver.stop()
        self.asked = _hosts(json.loads(self._log.read_text(encoding="utf-8")))

    def _answered(self, answer: Any) -> None:
        if answer.status >= 400 and not answer.url.endswith(EXPECTED):
            self.troubles.append(f"{answer.status} of {answer.url}")

    def open(self, address: str, height: int = HEIGHT) -> Any:
        """A page anew, without anything of the one before but what the browser keeps."""
        self.page.set_viewport_size({"width": self.width, "height": height})
        self.page.goto("about:blank")
        self.page.goto(address)
        return self.page

    def settle(self, shows: Sequence[str]) -> bytes:
        """The picture when all that `shows` selects can be seen and nothing moves any more."""
        for selector in shows:
            self._wait_for(selector)
        text = self.page.inner_text("body")
        self.troubles += [f"{self.page.url} says {words!r}" for words in BANNERS if words in text]
        before, until = b"", time.monotonic() + PATIENCE
        while (now := self.page.screenshot()) != before:
            if time.monotonic() > until:
                raise TimeoutError(f"{self.page.url} still moves after {PATIENCE:.0f} s")
            before = now
            self.page.wait_for_timeout(1000 * STILL)
        return now

    def _wait_for(self, selector: str) -> None:
        from playwright.sync_api import TimeoutError as NotInTime

        state: Any = "attached" if selector == CURVE else "visible"  # a level curve has no height
        try:
            self.page.locator(selector).first.wait_for(state=state)
        except NotInTime:
            text = " | ".join(self.page.inner_text("body").split("\n"))
            raise TimeoutError(
                f"{self.page.url} does not show {selector} within {PATIENCE:.0f} s, but {text}"
            ) from None


def _hosts(log: dict[str, Any]) -> set[str]:
    """The hosts that pages asked for, of a network log of Chromium."""
    told = [event.get("params", {}) for event in log["events"]]
    asked = [
        urlsplit(x["url"]) for x in told if x.get("initiator", ITSELF) != ITSELF and "url" in x
    ]
    return {url.hostname or "" for url in asked if url.scheme in ("http", "https", "ws", "wss")}


def keep(picture: bytes, path: Path) -> int:
    """Write a picture with few colours, which pages have anyhow; how many bytes it takes."""
    image = Image.open(BytesIO(picture)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)
    return path.stat().st_size
