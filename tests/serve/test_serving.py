"""`cssformer serve` as a process of its own: the page in a browser, the page's programs, and how it ends."""

import base64
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cssformer import CSSFormer, Metadata, Predictor
from cssformer.cli import main
from cssformer.data import SyntheticScenes
from cssformer.data.image_io import decode_image
from cssformer.inference import explain

pytest.importorskip("gradio", reason="needs the extra web")
DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
WORD = "a word"
PHONE, DESKTOP = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = CSSFormer(backbone="test_resnet", num_classes=4, channels=16, heads=2, points=3, aux=False)
    network.metadata = Metadata(classes=("background", "grass", "sky", "water"))
    folder = tmp_path_factory.mktemp("served")
    network.save_pretrained(folder / "model")
    scene = np.ascontiguousarray(SyntheticScenes(1, (96, 160))[0].image)
    Image.fromarray(scene).save(folder / "photo.png")
    (folder / "text.jpg").write_text("I am no picture.")
    (folder / "large.jpg").write_bytes(bytes(300_000))
    return folder / "model"


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address."""
    command = [sys.executable, "-m", "cssformer.cli", "serve", str(model), "--port", "0", "--token", WORD]
    command += ["--max_megabytes", "0.2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"http\S+:\d+/", process.stdout.readline())
        assert found, process.communicate()
        yield process, found[0]
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs the packages chromium and chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for word in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
        *("disable-component-update", "disable-sync", "disable-dev-shm-usage", f"user-data-dir={profile}"),
    ):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(model.parent)})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


class Page:
    """What a person does with the page."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def wait(self, found: Any, seconds: float = 60) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, seconds, 0.1).until(lambda _: found())

    def find(self, selector: str) -> Any:
        return self.wait(lambda: self.browser.find_elements("css selector", selector))[0]

    def source(self, selector: str) -> str:
        """Of an image that is loaded; empty if there is none."""
        script = "let i = document.querySelector(arguments[0]); return i && i.naturalWidth ? i.src : ''"
        return str(self.browser.execute_script(script, selector))

    def next_picture(self, selector: str, before: str) -> np.ndarray:
        """The pixels of an image once it has another source than before."""
        source = self.wait(lambda: (now := self.source(selector)) != before and now)
        script = """
            let done = arguments[1], reader = new FileReader()
            reader.onload = () => done(reader.result.split(',')[1])
            fetch(arguments[0]).then(answer => answer.blob()).then(data => reader.readAsDataURL(data))
        """
        data = base64.b64decode(self.browser.execute_async_script(script, source))
        return decode_image(data, Path(selector)).pixels

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def click(self, selector: str, x: float, y: float) -> None:
        """Click an image at a share of its width and height."""
        from selenium.webdriver import ActionChains

        image = self.find(selector)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
        size: dict[str, float] = {}
        # Once the page has come to rest.
        while size != (size := image.rect):
            time.sleep(0.3)
        ActionChains(self.browser).move_to_element_with_offset(
            image, round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"])
        ).click().perform()

    def requested(self) -> set[str]:
        """The addresses beyond this machine that were asked for."""
        events = [json.loads(each["message"])["message"] for each in self.browser.get_log("performance")]
        asked = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
        return {each for each in asked if re.match("(http|ws)s?:", each) and "127.0.0.1:" not in each}


def test_a_person_looks_at_a_picture(browser: Any, server: tuple[Any, str], model: Path, tmp_path: Path) -> None:
    page, (_, address), photo = Page(browser), server, model.parent / "photo.png"
    predictor = Predictor.from_pretrained(model, "cpu")
    expected = predictor(photo, top_k=2, entropy=True)
    page.resize(*DESKTOP)
    # As the browser's own question for name and password would.
    browser.get(address.replace("//", f"//me:{WORD.replace(' ', '%20')}@"))
    browser.get(address)

    page.find("#file input[type=file]").send_keys(str(photo))
    overlay = page.next_picture("#picture img", "")
    assert np.array_equal(overlay, expected.overlay())
    facts = page.wait(lambda: page.find("#facts").text)
    assert all(name in facts for name in expected.shares)

    for width, height in (PHONE, DESKTOP):
        page.resize(width, height)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        before = page.source("#looks img")
        page.click("#picture img", 0.7, 0.3 if width > 600 else 0.6)
        looks = page.next_picture("#looks img", before)
        place = 160 * 0.7, 96 * (0.3 if width > 600 else 0.6)
        near = [(int(place[0]) + x, int(place[1]) + y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
        assert any(np.array_equal(looks, explain(predictor, expected, *each).picture()) for each in near)
        (tmp_path / f"{width}.png").write_bytes(browser.get_screenshot_as_png())

    before = page.source("#picture img")
    page.find("#view label:nth-of-type(4)").click()
    entropy = page.next_picture("#picture img", before)[..., 0] / 255 * np.log(4)
    assert np.abs(entropy - expected.entropy).max() < 0.6 / 255 * np.log(4)

    page.find("#facts a[href*='save=labels']").click()
    labels = page.wait(lambda: (path := model.parent / "photo (1).png").exists() and path)
    assert np.array_equal(np.asarray(Image.open(labels)), expected.labels)

    refused = {"text.jpg": "text.jpg cannot be read as a picture", "large.jpg": "maximum allowed size"}
    for name, words in refused.items():
        # The last message may lie over it.
        browser.execute_script("arguments[0].click()", page.find("#file button[aria-label='Clear']"))
        page.find("#file input[type=file]").send_keys(str(model.parent / name))
        page.wait(lambda words=words: words in browser.execute_script("return document.body.innerText"))
    assert page.requested() == set()


def test_the_programs_of_the_docs_run(server: tuple[Any, str], model: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    for word, own in {"http://127.0.0.1:7860/": server[1], "TOKEN": WORD, "photo.jpg": "photo.png"}.items():
        assert word in program
        program = program.replace(word, own)
    done = subprocess.run([sys.executable, "-c", program], cwd=model.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = Predictor.from_pretrained(model, "cpu")(model.parent / "photo.png")
    assert np.array_equal(np.asarray(Image.open(model.parent / "labels.png")), expected.labels)
    assert set(re.findall(r"^(\w+) ", done.stdout, re.MULTILINE)) == set(expected.shares)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01",
    ],
    ids=["huge headers", "negative length", "broken chunks", "TLS"],
)
def test_what_is_no_http_is_refused(server: tuple[Any, str], request_bytes: bytes) -> None:
    port = int(server[1].split(":")[2].strip("/"))
    with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
        try:
            link.sendall(request_bytes)
            assert re.match(rb"HTTP/1.1 4\d\d ", link.recv(100))
        except (BrokenPipeError, ConnectionResetError):
            pass  # closed before all was sent
    with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
        link.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in link.recv(100)


def test_a_port_in_use_is_told_before_the_model_is_read(
    server: tuple[Any, str], capsys: pytest.CaptureFixture[str]
) -> None:
    port = server[1].split(":")[2].strip("/")
    assert main(["serve", "no/such/model", "--port", port]) == 2
    assert re.fullmatch(rf"cssformer: Cannot listen on port {port} .*\n", capsys.readouterr().err)


def test_where_nothing_takes_temporary_files_tmpdir_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a container whose file system is read-only."""
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [str(tmp_path / "missing")])
    assert main(["serve", "no/such/model"]) == 2
    assert re.fullmatch(r"cssformer: There is no folder .* name one by TMPDIR, .*\n", capsys.readouterr().err)


def test_ctrl_c_ends_with_one_line_and_leaves_nothing(server: tuple[subprocess.Popen[str], str]) -> None:
    process, _ = server
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    assert error.splitlines()[-1] == "cssformer: interrupted."
