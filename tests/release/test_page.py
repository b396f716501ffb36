"""The page in a headless browser, with the shipped models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.page_screenshot import answered, chromium, click, opened, put_picture, served

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("playwright", reason="needs playwright, of the extra dev")
pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium found: install one (Debian: chromium)"
)


@pytest.fixture(scope="module")
def pixellm(tiny_bundle: Path) -> Iterator[str]:
    with served(tiny_bundle) as (address, _):
        yield address


@pytest.fixture(scope="module")
def psalm(psalm_bundle: Path) -> Iterator[str]:
    with served(psalm_bundle, "--token", "secret-token") as (address, _):
        yield address


def pixels(page: Any) -> str:
    """What the canvas shows, by a hash."""
    text: str = page.evaluate("document.getElementById('canvas').toDataURL()")
    return text


def test_ask_and_toggle(pixellm: str, root: Path, samples: list[tuple[Path, str]], tmp_path: Path) -> None:
    with opened(pixellm) as page:
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        assert page.locator("#go").is_disabled() and not page.locator("#tasked").is_visible()
        put_picture(page, samples[0][0])
        bare = pixels(page)
        page.fill("#ask", samples[0][1])
        page.press("#ask", "Enter")
        answered(page)
        entries = page.locator("#masks li")
        assert entries.count() == 2 and "red circle" in entries.nth(0).inner_text()
        assert page.locator("#words").inner_text() == "Sure, the red circle 1 and the blue star 2."
        assert "2 masks" in page.locator("#say").inner_text()
        both = pixels(page)
        boxes = page.locator("#masks input")
        boxes.nth(0).uncheck()
        one = pixels(page)
        boxes.nth(1).focus()
        page.keyboard.press("Space")
        page.locator("#ask").focus()  # what has the focus is lit
        assert len({bare, both, one}) == 3 and pixels(page) == bare
        page.click("#all")
        assert page.locator("#masks input:checked").count() == 2
        assert f"-F 'image=@{samples[0][0].name}'" in page.locator("#code").inner_text()
        page.click("[data-code=python]")
        compile(page.locator("#code").inner_text(), "page", "exec")
        # A file that is none, and one that only the server finds damaged.
        text = tmp_path / "notes.png"
        text.write_text("no picture")
        page.set_input_files("#file", str(text))
        page.locator("#bad").wait_for()
        assert "notes.png is not a picture" in page.locator("#bad").inner_text()
        page.evaluate("picture.blob = new Blob(['damaged'])")
        page.click("#go")
        answered(page)
        assert "is not a picture that can be read" in page.locator("#bad").inner_text()
        assert [line for line in wrong if "400" not in line] == []


def test_click_box_and_keyboard(psalm: str, samples: list[tuple[Path, str]]) -> None:
    with opened(psalm, dark=True) as page:
        assert "token is missing" in page.locator("#bad").inner_text()
        page.once("dialog", lambda dialog: dialog.accept("secret-token"))
        page.click("#unlock")
        page.locator("#served:not(:empty)").wait_for()
        put_picture(page, samples[0][0])
        page.select_option("#task", "interactive")
        click(page, 95, 230)
        answered(page)
        assert "point 1" in page.locator("#masks li").inner_text()
        assert "points=[[95,230]]" in page.locator("#code").inner_text()
        assert "$PIXELRT_TOKEN" in page.locator("#code").inner_text()
        page.click("[data-tool=boxes]")
        canvas = page.locator("#canvas")
        canvas.focus()
        page.keyboard.press("Enter")
        for key in ("ArrowRight", "ArrowDown"):
            page.keyboard.press("Shift+" + key)
        page.keyboard.press("Enter")
        answered(page)
        assert (
            page.locator("#masks li").count() == 2
            and "box 2" in page.locator("#masks li").nth(1).inner_text()
        )
        page.click("#undo")
        answered(page)
        assert page.locator("#masks li").count() == 1
        page.select_option("#task", "panoptic")
        page.fill("#classes", "red circle, blue star")
        page.click("#go")
        answered(page)
        assert page.locator("#masks li").count() == 2


def test_the_camera(pixellm: str) -> None:
    """Chromium's own test picture stands for one."""
    with opened(pixellm) as page:
        page.click("#shoot")
        page.locator("#snap").wait_for()
        page.wait_for_timeout(500)  # frames come
        page.click("#snap")
        page.locator("#view").wait_for()
        assert "camera.jpg" in page.locator("#canvas").get_attribute("aria-label")
