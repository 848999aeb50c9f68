"""A real browser and a real web server, for the tests that look at pages and for scripts/screenshots.py."""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")


def why_no_browser() -> str | None:
    """Why no page can be looked at here, or None. Playwright drives the system's own Chromium: no download."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "playwright is not installed; run: pip install playwright"
    if not any(map(shutil.which, NAMES)):
        return f"none of {', '.join(NAMES)} is installed; on Debian: apt install chromium"
    return None


@contextmanager
def browser() -> Iterator["Browser"]:
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    executable = next(found for name in NAMES if (found := shutil.which(name)))
    # Chromium refuses to sandbox what root starts, as in a container.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=arguments)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def dagster_dev(environment: Mapping[str, str], cwd: Path, log: Path) -> Iterator[str]:
    """`dagster dev` on a free port, once it answers: its address. Stopped, with all that it started, at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["dagster", "dev", "-m", "compression_assets", "-h", "127.0.0.1", "-p", str(port)]
    # The services that it starts take this variable for a contradiction to their workspace file.
    given = {name: value for name, value in environment.items() if name != "DAGSTER_MODULE_NAME"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=given, cwd=cwd, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address, process, log)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{address}/server_info", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise RuntimeError(f"dagster dev does not answer on {address}: {log.read_text()[-2000:]}")
