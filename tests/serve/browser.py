"""A headless Chromium that a test can drive, through the pipe of its DevTools protocol."""

import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
PIPE = 'exec "$0" "$@" 3<&{} 4>&{}'
"""The protocol is spoken on these two descriptors."""


class Tab:
    """One page, and what it has complained about."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self.writing, self.number, self.rest = reading, writing, 0, b""
        self.session = ""
        self.complaints: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Log"):
            self.send(f"{part}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one command."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self.number:
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(answer["params"]))
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            part = os.read(self.reading, 1 << 16)
            assert part, "the browser has ended"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def run(self, script: str) -> Any:
        """The value of an expression."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 30) -> Any:
        """The value of an expression as soon as it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, (script, self.run("document.body.innerText"), self.complaints)
            time.sleep(0.05)
        return value

    def open(self, url: str) -> None:
        """Go to an address, whose query the page may rewrite as soon as it is there."""
        self.send("Page.navigate", url=url)  # answered when the new document is in place
        place = json.dumps(url.split("?")[0])
        self.wait(f"location.href.startsWith({place}) && document.readyState === 'complete'")

    def type(self, text: str) -> None:
        """Into whatever has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """One key down and up."""
        text = {"Enter": "\r"}.get(key, key)
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, text=text if kind == "keyDown" else "")

    def shoot(self, path: Path) -> Path:
        """A picture of what is seen."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))
        return path


@contextmanager
def chromium(profile: Path) -> Iterator[Tab]:
    """A browser with one empty page."""
    theirs, writing = os.pipe()
    reading, also_theirs = os.pipe()
    command = ["bash", "-c", PIPE.format(theirs, also_theirs), "chromium", *FLAGS, "--remote-debugging-pipe"]
    command += [f"--user-data-dir={profile}", "--window-size=1000,900", "about:blank"]
    process = subprocess.Popen(command, pass_fds=(theirs, also_theirs), stderr=subprocess.DEVNULL)
    os.close(theirs)
    os.close(also_theirs)
    try:
        yield Tab(reading, writing)
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)
