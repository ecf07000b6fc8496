"""Chromium with one page, told what to do over its debugging pipe (Chrome DevTools Protocol)."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from scripts.lab.waiting import is_readable

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip
SECONDS = 60.0  # for an answer, on a busy machine
PAGES = 20  # that may come one after the other while one is read


class Navigated(AssertionError):
    """Another page came while an expression was under way."""


class Browser:
    """A page. `faults` are the errors of scripts and of the console since it was opened."""

    def __init__(self) -> None:
        program = shutil.which("chromium")
        if program is None:
            pytest.skip("chromium is missing: apt-get install chromium")
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        # The browser takes its commands from descriptor 3 and gives its answers on 4.
        shell = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, program, *FLAGS, f"--user-data-dir={self._profile.name}"],
            pass_fds=(commands, answers), stderr=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | {"HOME": self._profile.name},
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self._rest, self._serial, self._session = b"", 0, ""
        self.faults: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._commands)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._answers)
        self._profile.cleanup()

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            while b"\0" not in self._rest:
                assert is_readable(self._answers, within=SECONDS), "no answer of the browser"
                data = os.read(self._answers, 1 << 20)
                assert data, "the browser has ended"
                self._rest += data
            message, _, self._rest = self._rest.partition(b"\0")
            yield json.loads(message)

    def ask(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call a method of the protocol and return its result; events in between are noted."""
        self._serial += 1
        command = {"id": self._serial, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        for message in self._messages():
            self._note(message)
            if message.get("id") == self._serial:
                if "navigated" in message.get("error", {}).get("message", ""):
                    raise Navigated(f"{method}: {message}")
                assert "error" not in message, (method, message)
                result: dict[str, Any] = message["result"]
                return result
        raise AssertionError("unreachable")

    def _note(self, message: dict[str, Any]) -> None:
        told = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.faults.append(str(told["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.faults.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    def open(
        self, url: str, width: int = 1280, height: int = 900, dark: bool = False, script: bool = True
    ) -> None:
        """Load a page in a window of that many CSS pixels and wait until it is whole."""
        self.faults.clear()
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Emulation.setScriptExecutionDisabled", value=not script)
        self.ask("Page.navigate", url=url)
        for message in self._messages():
            self._note(message)
            if message.get("method") == "Page.loadEventFired":
                return

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; a promise is waited for."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def read(self, expression: str) -> Any:
        """As `run`, of an expression that changes nothing: asked again when another page comes meanwhile."""
        for _ in range(PAGES):
            with contextlib.suppress(Navigated):
                return self.run(expression)
        raise Navigated(f"{PAGES} times in a row")

    def press(self, key: str) -> None:
        """Press and release a key."""
        for kind in ("rawKeyDown", "char", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "char" else {}
            code = {"Tab": 9, "Enter": 13, " ": 32}[key]
            if kind != "char" or text:
                self.ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def picture(self, path: Path) -> None:
        """Write a PNG of the whole page."""
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))
