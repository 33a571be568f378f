"""Stills of the label pages on a desktop and a phone, to be looked at.

    python tests/benchmarks/label_stills.py RUN --model sft --model ppo --out stills

`rlhf label serve` and `rlhf label converse` on a copy of a run's folder, and Chromium before them.
On each device somebody takes an opening, writes, sees the answers come, ranks them, goes on, also
while the worker is away; then an admin looks at the labels, decides a comparison, takes that back
and words the campaign. PNG files in the order of the doing; what can be scrolled sideways, which no
page should be, is told with the file's name, and the script ends with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from live_load import RLHF, process, wait_for_worker
from playwright.sync_api import sync_playwright

DEVICES: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 800}},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 2,
        "has_touch": True,
        "is_mobile": True,
    },
    "dark-phone": {
        "viewport": {"width": 360, "height": 740},
        "has_touch": True,
        "is_mobile": True,
        "color_scheme": "dark",
    },
}
GUIDELINES = "# What is better\n\nPrefer answers that are **true**; then short ones.\n"
TEXTS = (
    "Who is the baker, and what does she bake?",
    "\u0645\u0646 \u0647\u0648 \u0627\u0644\u062e\u0628\u0627\u0632\u061f",
    "Tell me about the town. " * 40,
)


class Camera:
    """A browser on one device, and the stills it takes."""

    def __init__(self, browser: Any, device: str, out: Path) -> None:
        self.context = browser.new_context(**DEVICES[device])
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.device, self.out = device, out
        self.number = 0
        self.wide: list[str] = []

    def still(self, what: str, *, whole: bool = False) -> None:
        self.number += 1
        path = self.out / f"{self.device}-{self.number:02}-{what}.png"
        self.page.screenshot(path=path, full_page=whole)
        fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        if not self.page.evaluate(fits):
            self.wide.append(path.name)

    def come_in(self, link: str) -> None:
        self.page.goto(link)
        self.page.locator("button.primary").click()
        self.page.wait_for_url(lambda url: "/invite/" not in url)

    def write(self, text: str) -> None:
        self.page.locator("#text").fill(text)
        with self.page.expect_response(lambda one: one.request.method == "POST"):
            self.page.locator("#send").click()
        self.page.wait_for_timeout(200)  # the page shows it then

    def rank(self, choice: int) -> bool:
        """Choose among the answers; return whether there are any to choose among."""
        # Either the task's page, or the conversation's, where something else can be written.
        self.page.wait_for_selector("#task[data-phase], #composer:not([hidden])")
        if "/t/" not in self.page.url:
            return False
        self.page.locator(f'.choice label:has([value="{choice}"])').click()
        return True

    def submit(self) -> None:
        self.page.locator("#submit").click()
        self.page.wait_for_url(lambda url: url.endswith("/talk"))


def converse(
    camera: Camera, link: str, stop: Callable[[], None], start: Callable[[], None]
) -> None:
    """Take stills of a live conversation from the invite on."""
    page = camera.page
    page.goto(link)
    camera.still("invite")
    camera.come_in(link)
    camera.still("guidelines")
    page.locator("#accept").click()
    page.wait_for_url(lambda url: url.endswith("/talk"))
    camera.still("openings")
    page.locator(".opening").first.click()
    camera.still("an-opening-taken")
    page.locator("#send").click()
    page.wait_for_timeout(120)
    camera.still("answers-come")
    camera.rank(-2)
    camera.still("ranked")
    camera.submit()
    camera.still("goes-on-with-the-best")
    stop()
    camera.write(TEXTS[0])
    page.wait_for_selector("#wait-text:has-text('Nobody answers just now')")
    camera.still("nobody-answers")
    start()
    camera.rank(3)
    camera.still("after-the-worker-came-back")
    page.locator("details.comment summary").click()
    page.locator("#comment").fill("The other one makes things up.")
    camera.submit()
    for text in TEXTS[1:]:
        camera.write(text)
        ranked = camera.rank(0)
        camera.still("long-or-right-to-left", whole=True)
        if ranked:
            camera.submit()
    camera.still("a-long-conversation", whole=True)
    page.locator(".top nav >> text=My labels").click()
    camera.still("my-labels")


def administer(camera: Camera, link: str) -> None:
    """Take stills of the pages of admins."""
    page = camera.page
    camera.context.clear_cookies()
    camera.come_in(link)
    page.goto(page.url.split("/", 3)[0] + "//" + page.url.split("/", 3)[2] + "/admin")
    camera.still("campaigns")
    page.locator("main table a").first.click()
    camera.still("campaign", whole=True)
    page.locator("text=Look at labels").click()
    camera.still("labels", whole=True)
    page.locator("select[name=flag]").select_option("sexual")
    page.locator("text=Filter").click()
    camera.still("nothing-found")
    page.locator("text=Show all").first.click()
    page.locator(".found a").first.click()
    camera.still("comparison", whole=True)
    page.locator('.choice label:has([value="1"])').click()
    page.locator("textarea[name=comment]").fill("B answers what was asked.")
    page.locator("button.big").click()
    page.wait_for_selector("text=adjudicated by")
    camera.still("adjudicated", whole=True)
    page.locator("text=Take the decision back").click()
    page.wait_for_selector("text=counts no more")
    camera.still("taken-back")
    page.go_back()  # to the page before the decision was taken back: it holds what was there
    camera.still("back")
    page.goto(page.url.split("/comparisons")[0] + "/wording")
    camera.still("wording")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", action="append", choices=[*DEVICES])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wide: list[str] = []
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        run = Path(scratch) / "run"
        run.mkdir()
        (run / "rules.md").write_text(GUIDELINES)
        models = [m for one in options.model for m in ("--model", str(options.run.resolve() / one))]
        worker = [
            *("converse", str(run), *models, "--openings", "world:rm_prompts"),
            *("--guidelines", str(run / "rules.md"), "--title", "Talk with the town"),
        ]
        stack.enter_context(process("serve", str(run), "--port", "0"))
        up = contextlib.ExitStack()
        stack.enter_context(up)

        def start() -> None:
            wait_for_worker(run, up.enter_context(process(*worker)))

        start()
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for device in options.device or DEVICES:
            camera = Camera(browser, device, options.out)
            converse(camera, invite(run, f"Ada on a {device}"), up.close, start)
            administer(camera, invite(run, f"Root on a {device}", "--admin"))
            wide += camera.wide
            camera.context.close()
    for name in wide:
        print(f"can be scrolled sideways: {name}")
    sys.exit(bool(wide))


def invite(run: Path, name: str, *options: str) -> str:
    """Return a link that lets somebody in."""
    told = subprocess.check_output([RLHF, "label", "invite", str(run), name, *options], text=True)
    return told.split("\t")[1].strip()


if __name__ == "__main__":
    main()
