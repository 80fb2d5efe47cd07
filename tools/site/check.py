"""Everything about the built site: links and weights, then Chromium on every page. `make check-docs`.

In Chromium each page is opened 390 pixels wide: no message in its console, no request that fails, nothing that
scrolls sideways, and no serious finding of axe-core. Then a term is searched, a sound is played, and pages are
read without scripts. Exit code 1 and a line for each problem.
"""

import argparse
import functools
import http.server
import json
import signal
import sys
import threading
import time
from pathlib import Path

from selenium import webdriver

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import links  # noqa: E402
import vendor  # noqa: E402

ROOT = HERE.parent.parent
AXE = """
const done = arguments[arguments.length - 1];
const [contrast] = arguments;
const rules = {"color-contrast": {enabled: contrast}};
const runOnly = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'];
const only = {rules, runOnly, resultTypes: ['violations']};
axe.run(document, only).then(found => done(found.violations
  .filter(v => ['serious', 'critical'].includes(v.impact))
  .map(v => v.id + ': ' + v.nodes.length + ' times, first ' + v.nodes[0].target.join(' '))))
  .catch(error => done(['axe failed: ' + error]));
"""


class Server(http.server.SimpleHTTPRequestHandler):
    """The site, and a list of what it did not have."""

    missing: list[str] = []

    def log_message(self, *args):
        pass

    def send_error(self, code, *args, **kwargs):
        self.missing.append(f"{code} {self.path}")
        super().send_error(code, *args, **kwargs)


def serve(site: Path) -> http.server.ThreadingHTTPServer:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def browser(chromium: str, driver: str) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    nowhere = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    sound = "--autoplay-policy=no-user-gesture-required"
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", nowhere, sound):
        options.add_argument(word)
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.set_script_timeout(120)
    return found


def show(driver, width: int, dark: bool = False) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)


def visit(driver, address: str, axe: str, contrast: bool, dark: bool) -> list[str]:
    """What is wrong with one page; contrast takes ten times as long as all else, and pages share their colours."""
    show(driver, 390, dark)
    Server.missing.clear()
    driver.get(address)
    found = [f"console: {entry['message'][:200]}" for entry in driver.get_log("browser")]
    found += [f"failed: {line}" for line in Server.missing]
    wide = driver.execute_script("return document.documentElement.scrollWidth")
    if wide > 390:
        found.append(f"{wide} pixels wide at 390")
    if axe:
        driver.execute_script(axe)
        found += driver.execute_async_script(AXE, contrast)
    return found


def search(driver, root: str, words: str, right: tuple[str, ...]) -> list[str]:
    """The first answer must lead to one of the right places."""
    driver.get(f"{root}/search.html?q={words}")
    for _ in range(60):
        time.sleep(0.25)
        found = driver.execute_script(
            "return [...document.querySelectorAll('#search-results li a')].map(a => a.href)"
        )
        if found:
            break
    if not found or not any(place in found[0] for place in right):
        return [f"search for {words}: first is {found[:1] or 'nothing'}, expected one of {right}"]
    return []


def play(driver, root: str) -> list[str]:
    """A sound on the landing page must run."""
    driver.get(f"{root}/index.html")
    script = "const a = document.querySelector('audio'); a.play().catch(e => { a.title = String(e); });"
    driver.execute_script(script)
    for _ in range(60):
        time.sleep(0.1)
        if driver.execute_script("return document.querySelector('audio').currentTime") > 0.2:
            return []
    return [f"no sound: {driver.execute_script('return document.querySelector(`audio`).title')}"]


def without_scripts(driver, root: str, names: list[str]) -> list[str]:
    """Words must be there, and the way to other pages."""
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    found = []
    for name in names:
        driver.get(f"{root}/{name}")
        article = driver.find_element("css selector", "article")
        if len(article.text.split()) < 100:
            found.append(f"{name}: without scripts {len(article.text.split())} words")
    driver.get(f"{root}/index.html")
    answer = driver.find_element("css selector", "article details")
    answer.find_element("css selector", "summary").click()
    if "copy" not in answer.text:
        found.append("index.html: the answer does not open without scripts")
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", nargs="?", type=Path, default=ROOT / "_docs")
    parser.add_argument("--work", type=Path, default=ROOT / "build/site")
    parser.add_argument("--only", nargs="*", default=[], help="words: pages with one of them in their path")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--chromedriver", default="/usr/bin/chromedriver")
    parser.add_argument("--no-axe", action="store_true")
    args = parser.parse_args()
    wrong = list(links.problems(args.site))
    for line in wrong:
        print(line, flush=True)
    print(f"links, weights, texts of figures: {len(wrong)} problems", flush=True)
    axe = (
        "" if args.no_axe else (vendor.from_npm("axe-core", args.work) / "axe.min.js").read_text(encoding="utf-8")
    )
    server = serve(args.site)
    root = f"http://127.0.0.1:{server.server_address[1]}"
    names = [p.relative_to(args.site).as_posix() for p in sorted(args.site.rglob("*.html"))]
    names = [n for n in names if not n.startswith("demo/") and (not args.only or any(o in n for o in args.only))]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the browser goes, too
    driver = browser(args.chromium, args.chromedriver)
    begin = time.monotonic()
    try:
        for i, name in enumerate(sorted(names, key=lambda n: n.startswith("_modules/"))):
            if i % 25 == 0:
                print(f"{i} of {len(names)} pages", file=sys.stderr, flush=True)
            # sources are shown by one template: axe looks at every tenth of them; every other page is dark
            look = axe if not name.startswith("_modules/") or i % 10 == 0 else ""
            contrast = i % 7 == 0 or name in ("index.html", "search.html", "api/index.html")
            found = visit(driver, f"{root}/{name}", look, contrast, dark=i % 2 == 1)
            wrong += found
            for line in found:
                print(f"{name}: {line}", flush=True)
        show(driver, 1280)
        found = search(driver, root, "minDCF", ("glossary.html", "api/metrics.html"))
        found += search(driver, root, "bayes_threshold", ("api/task.html",))
        found += search(driver, root, "EER", ("glossary.html", "api/metrics.html"))
        found += play(driver, root)
        found += without_scripts(driver, root, ["index.html", "pages/glossary.html"])
        wrong += found
        print(*found, sep="\n", flush=True)
    finally:
        driver.quit()
        server.shutdown()
    print(
        json.dumps(
            {"pages": len(names), "problems": len(wrong), "minutes": round((time.monotonic() - begin) / 60, 1)}
        )
    )
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
