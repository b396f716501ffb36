#!/usr/bin/env python3
"""Take the picture of the page that docs/serving.md shows.

python scripts/page_screenshot.py BUNDLE docs/page.png --image calib_data/scene_01.png \
    --prompt "Segment the red circle and the blue star."

Needs Chromium (Debian: apt install chromium) and playwright (in the extra dev). tests/release/test_page.py drives the
page with the same functions.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


def chromium() -> str | None:
    """Its program, where there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for path in map(shutil.which, names) if path), None)


@contextmanager
def served(bundle: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """(address, process) of a server, on a free port."""
    code = "from pixelrt.cli import main; main()"
    folders = [str(ROOT / folder) for folder in ("runtime", "kernels")]
    path = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    server = subprocess.Popen(
        [sys.executable, "-c", code, "serve", str(bundle), "--port", "0", *options],
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        line = server.stdout.readline()
        found = re.search(r"http://\S+", line)
        if not found:
            raise RuntimeError(f"the server did not start: {line}")
        yield found[0], server
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)


@contextmanager
def opened(address: str, dark: bool = False, size: tuple[int, int] = (1360, 860)) -> Iterator[Any]:
    """The page in a headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        # No sandbox: in a container Chromium cannot make one; the page is our own.
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox", *CAMERA])
        page = browser.new_page(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            device_scale_factor=1.5,
        )
        page.goto(address)
        page.locator("#served:not(:empty), #bad:not([hidden])").first.wait_for()
        yield page
        browser.close()


def put_picture(page: Any, image: Path) -> None:
    page.set_input_files("#file", str(image))
    page.locator("#view").wait_for()


def answered(page: Any) -> None:
    """Wait for the answer, or for the sentence in its place."""
    page.locator("#busy").wait_for(state="hidden", timeout=120_000)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--image", type=Path, default=ROOT / "calib_data" / "scene_01.png")
    parser.add_argument("--prompt", help="a question in words")
    parser.add_argument("--task", help="of a family that has tasks")
    parser.add_argument("--classes", help="for the tasks that take them, with commas between")
    parser.add_argument(
        "--point", action="append", default=[], help="X,Y in pixels of the picture, for the task interactive"
    )
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--size", default="1360x860", help="of the window")
    asked = parser.parse_args()
    width, height = map(int, asked.size.split("x"))
    with served(asked.bundle) as (address, _), opened(address, asked.dark, (width, height)) as page:
        put_picture(page, asked.image)
        if asked.task:
            page.select_option("#task", asked.task)
        if asked.classes:
            page.fill("#classes", asked.classes)
        if asked.prompt:
            page.fill("#ask", asked.prompt)
        if asked.classes or asked.prompt:
            page.click("#go")
            answered(page)
        for point in asked.point:
            click(page, *map(int, point.split(",")))
            answered(page)
        page.mouse.move(0, 0)
        page.wait_for_timeout(400)  # the last mask's entry fades in
        beside = asked.out.with_suffix(".part.png")
        page.screenshot(path=str(beside))
    # A palette would be a third of the file, and pale: a photograph leaves few of its colours to the masks.
    Image.open(beside).convert("RGB").save(beside, optimize=True)
    beside.replace(asked.out)


def click(page: Any, x: int, y: int) -> None:
    """Click a pixel of the picture."""
    box = page.locator("#canvas").bounding_box()
    width, height = page.evaluate("[picture.width, picture.height]")
    page.mouse.click(
        box["x"] + (x + 0.5) * box["width"] / width, box["y"] + (y + 0.5) * box["height"] / height
    )


if __name__ == "__main__":
    main()
