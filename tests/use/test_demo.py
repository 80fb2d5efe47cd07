"""The page that judges: what visitors may do, what they are told, and that nothing of them is kept."""

import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import requests
import soundfile as sf
import torch
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from wedefense_nb.models.detector import build, save_model
from wedefense_nb.scores.calibration import AffineCalibration, save_calibration
from wedefense_nb.use import demo
from wedefense_nb.use.demo import (
    BUSY,
    Answers,
    Busy,
    Judge,
    Limits,
    Line,
    Refused,
    Server,
    Uploads,
    Worker,
    check_question,
    examples,
    is_open,
    safe_name,
    visit,
)
from wedefense_nb.use.predict import Predictor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained detector with a calibration."""
    torch.manual_seed(0)
    place = save_model(build("bands"), tmp_path_factory.mktemp("demo") / "model")
    save_calibration(AffineCalibration().fit([0.0, 1.0, 2.0, 3.0], [0, 1, 0, 1]), place / "calibration.json")
    return place


@pytest.fixture(scope="module")
def server(folder):
    """With a limit of one megabyte and four in line."""
    with Server(folder, limits=Limits(megabytes=1.0, minutes=0.5, clients=4), port=0) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_kept(request):
    """Whatever a test did with the server, neither its uploads nor its answers are there afterwards."""
    yield
    if "server" in request.fixturenames:
        made = request.getfixturevalue("server")
        deadline = time.time() + 5
        while (len(made.uploads) or len(made.answers)) and time.time() < deadline:
            time.sleep(0.05)
        left = [str(path) for path in made._folder.rglob("*")]
        assert left == [str(made.uploads.folder)] and len(made.answers) == 0


@pytest.fixture(scope="module")
def voice(samples):
    return samples.paths()[2]


# The pieces


@pytest.mark.parametrize(
    "wrong", [{"megabytes": 0}, {"minutes": -1}, {"minutes": float("nan")}, {"clients": 0}, {"clients": 33}]
)
def test_limits_that_let_nothing_through_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


def test_a_line_has_its_places_and_no_more():
    line = Line(3)
    inside = threading.Barrier(4)
    leave = threading.Event()

    def stand():
        with line.place():
            inside.wait()
            leave.wait()

    threads = [threading.Thread(target=stand) for _ in range(3)]
    for thread in threads:
        thread.start()
    inside.wait()
    for _ in range(2):
        with pytest.raises(Busy, match="try again"), line.place():
            pass
    leave.set()
    for thread in threads:
        thread.join()
    with line.place(), line.place(), line.place():
        pass
    with pytest.raises(KeyError), line.place():
        raise KeyError
    with line.place(), line.place(), line.place():  # an error gives its place back
        pass


@pytest.mark.parametrize(
    "name, kept",
    [
        ("voice.m4a", "voice.m4a"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("/", "recording"),
        ("..", "recording"),
        ("", "recording"),
        (".wav", "wav"),
        ("a\x00b\n.wav", "a_b_.wav"),
        ("<img src=x onerror=alert(1)>.wav", "_img src=x onerror=alert(1)_.wav"),
        ("голос 声.opus", "голос 声.opus"),
        ("x\u202egpj.wav", "x_gpj.wav"),
    ],
)
def test_names_are_made_harmless(name, kept):
    assert safe_name(name) == kept
    for long in ("声" * 400 + name, name + "声" * 400):
        assert 0 < len(os.fsencode(safe_name(long))) < 255


def test_uploads_are_found_by_their_own_path_only(tmp_path):
    uploads = Uploads(tmp_path / "in", most=3)
    (tmp_path / "secret").write_text("x")
    path = uploads.room("../a.wav")
    path.write_bytes(b"x")
    assert uploads.find(str(path)) == path and path.parent.parent == uploads.folder
    other = uploads.room("b.wav")
    other.symlink_to(tmp_path / "secret")
    elsewhere = tmp_path / ("0" * 32) / "a.wav"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(b"x")
    room = str(path.parent)
    for text in (
        str(tmp_path / "secret"),
        f"{room}/../../../secret",
        f"{room}/..",
        f"{room}/.",
        room,
        f"{uploads.folder}/{path.parent.name}/nothing.wav",
        str(other),
        str(elsewhere),
        "",
        "a\x00b",
        "http://127.0.0.1/a.wav",
        "file:///etc/passwd",
        os.path.relpath(path),
    ):
        with pytest.raises(Refused, match="send it again"):
            uploads.find(text)
    uploads.room("c.wav")
    with pytest.raises(Busy):
        uploads.room("d.wav")
    uploads.forget(path)
    assert not path.parent.exists() and len(uploads) == 2


def test_what_nobody_asks_about_is_swept(tmp_path):
    uploads = Uploads(tmp_path / "in", seconds=60)
    old, new = uploads.room("a.wav"), uploads.room("b.wav")
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old.parent, (0, 0))
    uploads.sweep()
    assert not old.exists() and new.exists()


def test_answers_are_handed_out_once_and_not_for_ever(monkeypatch):
    answers = Answers(most=2, seconds=60)
    words = [answers.put(f"page {i}") for i in range(3)]
    assert len(set(words)) == 3 and [answers.take(word) for word in words] == [None, "page 1", "page 2"]
    word = answers.put("x")
    answers.sweep()
    assert len(answers) == 1
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 61)
    answers.sweep()
    assert answers.take(word) is None and len(answers) == 0


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=data_samples/README.md",
        "/gradio_api/file=http://127.0.0.1:9/",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=https://example.org/",
        "/gradio_api/run/judge",
        "/gradio_api/call/judge",
        "/gradio_api/info",
        "/gradio_api/deep_link",
        "/gradio_api/vibe-edit/",
        "/gradio_api/runs",
        "/gradio_api/run-history/records",
        "/gradio_api/stream/a/b/1/playlist-file",
        "/gradio_api/app_id",
        "/monitoring",
        "/monitoring/summary",
        "/assets/../../../../etc/passwd",
        "/static/..",
        "/answer/../config",
        "/docs",
        "/config\n",
        "//etc/passwd",
    ],
)
def test_the_door_is_shut(path, tmp_path):
    assert not is_open(path, Uploads(tmp_path / "in"))


def test_the_door_opens_for_what_the_page_uses(tmp_path):
    uploads = Uploads(tmp_path / "in")
    path = uploads.room("a.wav")
    path.write_bytes(b"x")
    for address in ("/", "/config", "/assets/index-a1.js", "/gradio_api/queue/join", f"/gradio_api/file={path}"):
        assert is_open(address, uploads)


def test_questions_name_uploads_and_nothing_else(tmp_path):
    uploads = Uploads(tmp_path / "in")
    path = uploads.room("a.wav")
    path.write_bytes(b"x")
    check_question(json.dumps({"data": [{"path": str(path)}, 0.5, None]}).encode(), uploads)
    for value in (
        {"path": "/etc/passwd"},
        [{"a": {"b": [{"path": "http://127.0.0.1/"}]}}],
        {"path": str(path), "also": {"path": "."}},
        {"path": {"path": str(path)}},
        {"path": None},
    ):
        with pytest.raises(Refused):
            check_question(json.dumps({"data": [value]}).encode(), uploads)
    with pytest.raises(ValueError, match="not JSON"):
        check_question(b"{", uploads)
    with pytest.raises(ValueError, match="nested too deeply"):
        check_question(b"[" * 100_000, uploads)


def test_a_worker_is_killed_and_another_one_follows():
    worker = Worker(partial(partial, time.sleep), seconds=0.3)
    worker.wait()
    began = time.monotonic()
    with pytest.raises(Refused, match=r"more than 0.3 s.*shorter part"):
        worker.ask(60.0)
    assert time.monotonic() - began < 20
    worker.seconds = 20.0
    assert worker.ask(0.0) is None
    worker.process.kill()
    worker.process.join()
    assert worker.ask(0.0) is None  # it died while nobody asked
    with pytest.raises(Refused, match="must be non-negative"):
        worker.ask(-1.0)
    with pytest.raises(Refused, match=r"could not be judged \(TypeError\)"):
        worker.ask("x")
    worker.close()
    assert not worker.process.is_alive()


def test_a_crash_of_the_worker_is_an_answer():
    worker = Worker(partial(partial, os._exit), seconds=20.0)
    for _ in range(2):
        with pytest.raises(Refused, match="stopped the program that judges"):
            worker.ask(3)
    worker.close()


def test_a_worker_that_cannot_start_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="model folder"):
        Server(tmp_path, port=0)
    assert not list(tmp_path.iterdir())


def test_the_judge_says_the_words_of_detect_and_no_path(folder, voice, tmp_path):
    judge = Judge.from_folders(folder)
    path = tmp_path / "secret" / "a.wav"
    path.parent.mkdir()
    path.write_bytes(voice.read_bytes())
    answer = judge(str(path), "mine.flac", 0.2, 1.0, 5.0)
    own = Predictor.from_folder(folder).detect(path, 0.2, 1.0, 5.0)
    assert answer["words"] == own.text().replace(str(path), "mine.flac")
    assert answer["decision"] == own.decision and "secret" not in json.dumps(answer)
    path.write_text("Dear Sir")
    with pytest.raises(ValueError, match=r"^mine.flac: not an audio file.*or broken.*\. Please send") as caught:
        judge(str(path), "mine.flac", 0.5, 1.0, 1.0)
    assert "secret" not in str(caught.value) and "Errno" not in str(caught.value)


def test_a_localizer_shows_where(folder, voice, tmp_path):
    torch.manual_seed(0)
    where = save_model(build("frame_linear", front_options={"n_mels": 20}), tmp_path / "where")
    judge = Judge.from_folders(folder, where)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "report_page", lambda *args: seen.append(args) or "page")
        assert judge(voice, "a.flac", 0.5, 1.0, 1.0)["page"] == "page"
    ((judged, path, places),) = seen
    assert judged.file == "a.flac" and path == voice and len(places.llr) > 10


def test_examples_are_real_fake_and_both(samples):
    table = samples.utterances.set_index("utt")
    labels = [table.loc[path.stem].kind for path in examples().values()]
    assert len(labels) == 3 and labels[2] == "partial" and examples().keys() != set()


# The server, asked by programs


def test_a_visitor_gets_words_and_a_page_and_nothing_stays(server, voice):
    got = visit(server.address, voice, p_spoof=0.9, name="../../message.flac")
    assert got.problem == "" and "90% of such recordings" in got.words and got.words.startswith("message.flac: ")
    assert "<audio" in got.page and len(got.words.splitlines()) == 5


def test_visitors_are_told_what_to_do(server, voice, tmp_path):
    (tmp_path / "letter.wav").write_text("Dear Sir")
    assert "letter.wav: not an audio file" in visit(server.address, tmp_path / "letter.wav").problem
    (tmp_path / "large.wav").write_bytes(bytes(3_000_000))
    assert visit(server.address, tmp_path / "large.wav").problem.startswith("This file is too large: at most 1 MB")
    assert "strictly between 0 and 1" in visit(server.address, voice, p_spoof=1.5).problem
    with pytest.raises(Refused, match="no recording yet"):
        server.ask(None, None, 0.5, 1.0, 1.0)


def test_a_length_that_lies_or_is_missing_does_not_help(server):
    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
        for _ in range(3000):
            yield bytes(1000)

    form = {"Content-Type": "multipart/form-data; boundary=x"}
    reply = requests.post(server.address + "gradio_api/upload", data=endless(), headers=form)
    assert reply.status_code == 413 and "too large" in reply.text


@pytest.mark.parametrize(
    "body, said",
    [
        (b"", "not complete"),
        (b"hello", "broke off"),
        (b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\nabc', "not complete"),
        (b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\nabc\r\n--x--\r\n', "not complete"),
        (b'--x\r\nContent-Disposition: form-data; filename="' + b"a" * 9000 + b'"\r\n\r\n', "broke off"),
        (b'--x\r\nContent-Disposition: form-data; filename="a"\r\n\r\nabc\r\n' * 2 + b"--x--\r\n", "One file"),
    ],
)
def test_broken_uploads_leave_nothing(server, body, said):
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    reply = requests.post(server.address + "gradio_api/upload", data=body, headers=form)
    assert reply.status_code == 413 and said in reply.text


def test_the_server_hands_out_nothing_else(server):
    for path in ("gradio_api/file=/etc/passwd", "gradio_api/proxy=http://127.0.0.1:9/", "answer/x", "docs"):
        assert requests.get(server.address + path).status_code == 404
    ask = partial(requests.post, server.address + "gradio_api/queue/join")
    secret = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    reply = ask(json={"session_hash": "x", "fn_index": 0, "data": [secret, 0.5, 1, 1]})
    assert reply.status_code == 400 and "send it again" in reply.text
    assert ask(data=b"x" * 200_000).status_code == 400
    other = requests.get(server.address, headers={"Host": "evil.example"})
    assert other.status_code == 421
    own = requests.get(server.address)
    assert "connect-src 'self'" in own.headers["Content-Security-Policy"] and "server" not in own.headers


def test_a_judgement_that_takes_too_long_is_stopped_and_the_next_one_is_not(server, voice, monkeypatch):
    monkeypatch.setattr(server.worker, "seconds", 0.001)
    assert visit(server.address, voice).problem.startswith("Stopped: this took more than")
    monkeypatch.setattr(server.worker, "seconds", 30.0)
    assert visit(server.address, voice).words


def test_twelve_at_once_are_answered_or_told_busy(server, voice, tmp_path):
    """Some send the same file, and a broken one is among them; four may be in line."""
    (tmp_path / "letter.wav").write_text("Dear Sir")
    files = [voice, voice, voice, tmp_path / "letter.wav"] * 3
    end = time.monotonic() + 3
    got = []

    def keep_asking(path):
        while time.monotonic() < end:
            got.append(visit(server.address, path, seconds=30.0))
            time.sleep(0.1 if got[-1].problem == BUSY else 0)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(keep_asking, files))
    problems = {one.problem for one in got if one.problem}
    assert BUSY in problems and all(p == BUSY or p.startswith("letter.wav: not an audio") for p in problems)
    answered = [one for one in got if not one.problem]
    assert len(answered) > 3 and all(one.words and one.page for one in answered)


def test_a_port_that_is_taken_is_an_error(server, folder, monkeypatch):
    monkeypatch.setattr(demo, "Worker", lambda *args: type("W", (), {"wait": lambda s: 0, "close": lambda s: 0})())
    port = int(server.address.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(OSError, match=f"port {port}.*choose another --port"):
        Server(folder, port=port)
    with pytest.raises(OSError, match="choose another"):
        Server(folder, port=70_000)


# The page, in a browser


def wait(browser, selector: str):
    """The element, once it can be seen."""
    found = WebDriverWait(browser, 30).until(
        lambda b: [one for one in b.find_elements(By.CSS_SELECTOR, selector) if one.is_displayed()]
    )
    return found[0]


def press(browser, selector: str) -> None:
    button = wait(browser, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()


def upload(browser, path) -> None:
    wait(browser, "#judge")
    browser.find_element(By.CSS_SELECTOR, "#file input[type=file]").send_keys(str(path))


def test_a_visit_in_a_browser(server, browser, voice, tmp_path):
    """Upload, verdict, another prior, a broken file, a large one, an example: and nobody else is asked."""
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(server.address)
    upload(browser, voice)
    wait(browser, "#file .file-preview, #file table")
    press(browser, "#judge")
    frame = wait(browser, "#frame iframe")
    assert "allow-same-origin" not in frame.get_attribute("sandbox")
    browser.switch_to.frame(frame)
    body = browser.find_element(By.TAG_NAME, "body")
    WebDriverWait(browser, 10).until(lambda b: "FAKE" in body.text or "REAL" in body.text)
    before = body.text
    sliders = body.find_elements(By.CSS_SELECTOR, "input[type=range]")
    move = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
    verdicts = set()
    for end in ("min", "max"):
        browser.execute_script(move, sliders[0], sliders[0].get_attribute(end))
        verdicts.add("REAL" in body.text.split("If")[0])
    assert verdicts == {True, False} and body.text != before
    browser.switch_to.default_content()
    assert len(server.uploads) == 0 and len(server.answers) == 0
    press(browser, "#again")

    (tmp_path / "<b>letter.wav").write_text("Dear Sir")
    upload(browser, tmp_path / "<b>letter.wav")
    wait(browser, "#file .file-preview, #file table")
    press(browser, "#judge")
    assert "_b_letter.wav: not an audio file" in wait(browser, "#problem .told").text
    (tmp_path / "large.wav").write_bytes(bytes(1_500_000))
    upload(browser, tmp_path / "large.wav")
    WebDriverWait(browser, 10).until(lambda b: "exceed the maximum allowed size" in b.page_source)

    browser.find_elements(By.CSS_SELECTOR, "button[role=tab]")[2].click()
    press(browser, ".example")
    assert "allow-scripts" in wait(browser, "#frame iframe").get_attribute("sandbox")

    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    away = [url for url in asked if not url.startswith((server.address, "data:", "blob:", "about:"))]
    assert len(asked) > 10 and away == []
    refused = [entry["message"] for entry in browser.get_log("browser") if "Content Security" in entry["message"]]
    assert refused == []


def test_what_was_heard_is_told(server, tmp_path):
    """What is not speech may be sent as well; it is measured, and the page says what was heard."""
    sf.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).normal(size=16_000), 16_000)
    assert "Heard: 1.0 s" in visit(server.address, tmp_path / "a.wav").words


def test_without_gradio_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"wedefense_nb\[demo\]"):
        Server(folder, port=0)
