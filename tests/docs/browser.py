"""Chromium over its debugging pipe: real keys, a phone's width, the dark scheme. Needs nothing but Chromium."""

import json
import os
import shutil
import subprocess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# The keys pressed here: their codes on Windows, which is what the protocol asks for.
KEYS = {"Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Enter": 13, " ": 32}


class Browser:
    """One page in a headless Chromium; a context manager."""

    def __init__(self, folder):
        down, up = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}"]

        def connect():
            # Moved out of the way first: one of them may be 3 or 4 itself.
            reads, writes = os.dup(down[0]), os.dup(up[1])
            os.dup2(reads, 3)
            os.dup2(writes, 4)

        self.process = subprocess.Popen(
            [CHROMIUM, *flags],
            preexec_fn=connect,
            close_fds=False,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(down[0])
        os.close(up[1])
        self.out, self.back = os.fdopen(down[1], "wb", 0), os.fdopen(up[0], "rb", 0)
        self.number, self.session, self.rest = 0, None, b""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.out.close()
        self.back.close()

    def send(self, method, **params):
        """A command, and its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.out.write(json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                read = self.back.read(65536)
                assert read, "Chromium went away"
                self.rest += read
            line, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def show(self, path, width, dark=False):
        """Open a file at this width, as a phone would below 500 pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=f"file://{path}")
        wait = "new Promise((f) => document.readyState == 'complete' ? f() : addEventListener('load', f))"
        self.ask(wait)

    def ask(self, expression):
        """The value of an expression in the page, promises awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key, times=1):
        """Press a key as a person does, and let the page draw."""
        text = {"text": key} if key == " " else {}
        code = {"windowsVirtualKeyCode": KEYS[key], "key": key, "code": "Space" if key == " " else key}
        for _ in range(times):
            self.send("Input.dispatchKeyEvent", type="keyDown", **code, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", **code)
        self.ask("new Promise((f) => requestAnimationFrame(() => requestAnimationFrame(f)))")
