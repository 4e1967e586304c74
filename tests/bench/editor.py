"""Measure the caption editor in a browser: `python tests/bench/editor.py --pictures 300`.

Pictures of 12 megapixels are uploaded to the real service. Told are the time until the cards can be used, after the
upload and after a refresh; the longest task of the page and the longest pause between two frames while all cards are
scrolled by; the time from a key press to the frame that shows the letter, and from Tab to the word “saved”; and memory.
The browser draws in software, and all runs on the same cores: read the figures as upper bounds.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
import zipfile
from pathlib import Path

import numpy
import psutil
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from service import Service

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
WORDS = "a small thing of wood on a grey ground, seen from the side"
READY = "() => [...document.querySelectorAll('.pictures .thumbnail img')].slice(0, 6).every((one) => one.naturalWidth)"
WATCH = """() => {
    window.tasks = [];
    new PerformanceObserver((list) => tasks.push(...list.getEntries().map((one) => one.duration)))
        .observe({ type: "longtask" });
}"""
SCROLL = """(seconds) => new Promise((done) => {
    const grid = document.querySelector(".pictures .grid"), frames = [], began = performance.now();
    const step = (now) => {
        frames.push(now);
        const share = Math.min(1, (now - began) / (1000 * seconds));
        grid.scrollTop = share * (grid.scrollHeight - grid.clientHeight);
        if (share < 1) return requestAnimationFrame(step);
        const pauses = frames.slice(1).map((time, place) => time - frames[place]);
        const built = document.querySelectorAll(".picture").length;
        setTimeout(() => done({ pauses, built, longest: Math.max(0, ...tasks) }), 200);  // they are told of later
    };
    tasks.length = 0;
    requestAnimationFrame(step);
})"""
TYPED = """() => {
    window.typed = [];
    let pressed = 0;
    addEventListener("keydown", (event) => (pressed = event.timeStamp), true);
    addEventListener("input", () => requestAnimationFrame(() => {
        const { port1, port2 } = new MessageChannel(), from = pressed;
        port1.onmessage = () => typed.push(performance.now() - from);
        port2.postMessage(0);
    }), true);
}"""
SAVED = """() => new Promise((done) => {
    let from = 0;
    addEventListener("keydown", (event) => { if (event.key === "Tab") from = event.timeStamp; }, true);
    new MutationObserver((_, watch) => {
        if (!from || !document.querySelector("small.saved")) return;
        watch.disconnect();
        done(performance.now() - from);
    }).observe(document.querySelector(".grid"), { subtree: true, childList: true });
})"""


def zip_of_photos(path: Path, count: int, megapixels: float) -> Path:
    """Write a ZIP of JPEGs, all different, half of them with captions."""
    rng = numpy.random.default_rng(0)
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    size = (round(height * 4 / 3), height)
    scenes = [Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=numpy.uint8)).resize(size) for _ in range(8)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as zip:
        for number in range(count):
            picture = scenes[number % len(scenes)]
            picture.paste((number % 256, number // 256, 90), (0, 0, 64 + number, 64))
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=90)
            zip.writestr(f"photo{number:04}.jpg", buffer.getvalue())
            if number % 2:
                zip.writestr(f"photo{number:04}.txt", WORDS)
    return path


def upload(page: Page, path: Path, count: int) -> None:
    """Tell how long it takes from the choice of the file to cards that can be used."""
    began = time.monotonic()
    page.locator("#pictures-zip input[type=file]").set_input_files(path)
    page.wait_for_function(f"document.querySelectorAll('.cell').length === {count}", timeout=1_800_000)
    page.wait_for_function(READY)
    size = path.stat().st_size / 2**20
    print(f"uploaded and checked, {size:.0f} MiB: cards can be used after {time.monotonic() - began:.1f} s")


def reload(page: Page, count: int) -> None:
    """Tell how long it takes from a refresh to cards that can be used."""
    times = []
    for _ in range(3):
        began = time.monotonic()
        page.reload()
        page.wait_for_function(f"document.querySelectorAll('.cell').length === {count}", timeout=60_000)
        page.wait_for_function(READY)
        times.append(time.monotonic() - began)
    print(f"after a refresh of the page: {statistics.median(times):.2f} s")


def scroll(page: Page, seconds: float) -> None:
    """Tell what happens while all cards are scrolled by, there and back."""
    for name in ("the first time", "once more"):
        page.evaluate("document.querySelector('.grid').scrollTop = 0")
        page.wait_for_timeout(500)
        told = page.evaluate(SCROLL, seconds)
        pauses = statistics.quantiles(told["pauses"], n=20)
        print(
            f"scrolled by in {seconds:.0f} s, {name}: longest task {told['longest']:.0f} ms (0: none over 50), frames "
            f"p50 {statistics.median(told['pauses']):.0f} ms, p95 {pauses[-1]:.0f} ms, longest "
            f"{max(told['pauses']):.0f} ms; {told['built']} cards are built"
        )


def type_and_save(page: Page, captions: int) -> None:
    """Tell how long letters take to be shown, and captions to be saved."""
    page.evaluate(TYPED)
    page.evaluate("document.querySelector('.grid').scrollTop = 0")
    page.locator(".cell").first.click()
    saved = []
    for _ in range(captions):
        page.evaluate(f"() => {{ window.saving = ({SAVED})() }}")
        page.keyboard.type(", and more", delay=60)
        page.keyboard.press("Tab")
        saved.append(page.evaluate("window.saving"))
        page.wait_for_function("!document.querySelector('small.saved')")
    typed = page.evaluate("typed")
    twentieths = statistics.quantiles(typed, n=20)
    print(
        f"{len(typed)} letters: shown after p50 {statistics.median(typed):.0f} ms, p95 {twentieths[-1]:.0f} ms, "
        f"most {max(typed):.0f} ms"
    )
    print(f"{captions} captions: saved after p50 {statistics.median(saved):.0f} ms, most {max(saved):.0f} ms")


def replace_everywhere(page: Page) -> None:
    """Tell how long it takes to change all captions at once."""
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Replace", exact=True).first.click()
    page.get_by_label("Find").fill("wood")
    page.get_by_label("Replace with").fill("stone")
    began = time.monotonic()
    page.keyboard.press("Enter")
    page.wait_for_function("!document.querySelector('.tools').innerText.includes('matches in')")
    print(f"a word replaced in all captions: {time.monotonic() - began:.2f} s")


def memory(browser: Browser, page: Page) -> None:
    """Tell what the page takes."""
    client = page.context.new_cdp_session(page)
    client.send("HeapProfiler.collectGarbage")
    client.send("Performance.enable")
    told = {one["name"]: one["value"] for one in client.send("Performance.getMetrics")["metrics"]}
    renderers = [
        process.memory_info().rss
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE and "--type=renderer" in " ".join(process.cmdline())
    ]
    print(
        f"memory: scripts {told['JSHeapUsedSize'] / 2**20:.0f} MiB, {told['Nodes']:.0f} nodes, the page’s process "
        f"{max(renderers) / 2**20:.0f} MiB"
    )


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--megapixels", type=float, default=12.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--captions", type=int, default=10)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = zip_of_photos(Path(folder) / "photos.zip", asked.pictures, asked.megapixels)
        service = Service(Path(folder) / "home", is_real=False)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 1366, "height": 860})
            page.goto(f"http://127.0.0.1:{service.port}/")
            page.get_by_role("tab").first.wait_for()
            print(f"{asked.pictures} pictures of {asked.megapixels:g} megapixels, load {os.getloadavg()[0]:.1f}")
            upload(page, path, asked.pictures)
            reload(page, asked.pictures)
            page.evaluate(WATCH)
            scroll(page, asked.seconds)
            type_and_save(page, asked.captions)
            replace_everywhere(page)
            memory(browser, page)
        finally:
            browser.close()
            for process in (*service.process.children(recursive=True), service.process):
                process.terminate()
            service.process.wait()


if __name__ == "__main__":
    main()
