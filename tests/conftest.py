"""Shared fixtures. Everything runs offline on data_samples/ and on small things made here."""

import contextlib
import http.server
import os
import shutil
import threading
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["TQDM_DISABLE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest runs one process a core; notebooks and commands inherit it
for _proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):  # pitfall 63: nothing needs a network
    os.environ[_proxy] = "http://127.0.0.1:9"  # where nobody answers
os.environ["no_proxy"] = os.environ["NO_PROXY"] = (
    "localhost,127.0.0.1"  # this machine, where a browser's driver is
)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

from wedefense_nb.data.manifest import Manifest  # noqa: E402

ROOT = Path(__file__).parent.parent
GOLDEN_DIR = Path(__file__).parent / "golden"

torch.set_num_threads(1)
settings.register_profile("repo", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("repo")


class Handler(http.server.BaseHTTPRequestHandler):
    """What answers in tests, without a word about it."""

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(handler):
    """A local server; gives its address, with a slash at the end."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextlib.contextmanager
def power_cut(module, name: str, after: int, error: type[BaseException] = KeyboardInterrupt):
    """A function of a module works `after` times and then raises, and the error must come out of the block."""
    calls = iter(range(after))
    function = getattr(module, name)

    def cut(*args):
        if next(calls, None) is None:
            raise error
        return function(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(error):
        patch.setattr(module, name, cut)
        yield


@pytest.fixture
def lent(monkeypatch):
    """`lent(registry)`: what a test registers there is forgotten after it."""

    def lend(registry):
        for name, table in vars(registry).items():
            if isinstance(table, dict):
                monkeypatch.setattr(registry, name, dict(table))
        return registry

    return lend


@pytest.fixture(scope="session")
def samples() -> Manifest:
    return Manifest.read(ROOT / "data_samples")


@pytest.fixture(scope="session")
def few(samples) -> Manifest:
    """A small corpus with all splits, both classes and partial fakes."""
    u = samples.utterances
    rows = [g.head(8) for _, g in u[u.kind != "spliced"].groupby(["split", "label", "kind"])]
    return samples.subset(utt=[utt for g in rows for utt in g.utt])


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, one for the session: what it logged is read by `browser.get_log`."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with its driver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--mute-audio", "--window-size=900,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=Service(driver))
    yield running
    running.quit()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    np.random.seed(0)
