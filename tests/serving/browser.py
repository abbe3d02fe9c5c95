"""A headless Chromium, driven over its DevTools protocol by a pair of pipes, which needs no driver of others."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


class Browser:
    """One page. ``events`` are what it has told so far."""

    def __init__(self, to: int, of: int) -> None:
        self.to, self.of = to, of
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        self.unread, self.asked = b"", 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.unread:
            piece = os.read(self.of, 1 << 20)
            if not piece:
                raise EOFError("Chromium has ended")
            self.unread += piece
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        self.asked += 1
        asked = {"id": self.asked, "method": method, "params": parameters}
        if self.session:
            asked["sessionId"] = self.session
        os.write(self.to, json.dumps(asked).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == self.asked:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            if "method" in message:
                self.events.append(message)

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression; of a promise what it becomes."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> None:
        """Until it holds."""
        end = time.monotonic() + seconds
        while not self.value(expression):
            if time.monotonic() > end:
                pytest.fail(f"not within {seconds} s: {expression}\n{self.value('document.body.innerText')}")
            time.sleep(0.05)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait(f"document.readyState == 'complete' && location.href.startsWith({url!r})")

    def choose(self, selector: str, path: Path) -> None:
        """A file, in an input of files, as its dialogue would."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def drop(self, path: Path) -> None:
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=200, y=200, data=data)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def told(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event["method"] == method]

    def screenshot(self, path: Path) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Skips the test where there is none."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"needs a headless Chromium: apt install {PROGRAMS[0]}")
    (theirs_in, to), (of, theirs_out) = os.pipe(), os.pipe()

    def as_three_and_four() -> None:
        for number, end in ((10, theirs_in), (11, theirs_out)):
            os.dup2(end, number)
        os.dup2(10, 3)
        os.dup2(11, 4)

    # --no-sandbox: of containers, whose tests run as root.
    command = [program, "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]  # fmt: skip
    process = subprocess.Popen(
        command, preexec_fn=as_three_and_four, close_fds=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(to, of)
    finally:
        process.terminate()
        process.wait(30)
        os.close(to)
        os.close(of)
