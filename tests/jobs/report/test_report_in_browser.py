"""What a person sees when a real browser opens the report from disk, with the network out of reach."""

import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from report_documents import comparison_document, finetune_document

from benchmarks.report_size import made_up
from jobs.report.html import render_report

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")

QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
# What this browser asks for by itself, whatever the page: its components, its accounts, its search engine.
CHROMIUMS_OWN = re.compile(r"https?://([\w-]+\.)*(google|googleapis|gstatic|gvt1|chromium|duckduckgo)\.(com|org)/")
DARK = "--blink-settings=preferredColorScheme=0"
# Tells in the title what the layout engine made of the page; only the test's copy of the page carries it.
MEASURE = """<script>
const wide = [...document.querySelectorAll("body *")].filter(
  (one) => !one.closest(".scroll, pre, svg") && one.getBoundingClientRect().right > innerWidth + 1);
const plots = [...document.querySelectorAll("figure svg")].filter((one) => one.getBoundingClientRect().height > 60);
document.title = JSON.stringify(
  [innerWidth, document.documentElement.scrollWidth, wide.map((one) => one.outerHTML.slice(0, 80)), plots.length]);
</script></body>"""


def browse(tmp_path: Path, html: str, *arguments: str) -> str:
    """What chromium prints for the page, opened as a file."""
    assert CHROMIUM is not None
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *arguments, file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def screenshot(tmp_path: Path, html: str, *arguments: str) -> np.ndarray:
    """The page as (height, width, channels) values from 0 to 1."""
    picture = tmp_path / "page.png"
    browse(tmp_path, html, f"--screenshot={picture}", *arguments)
    return np.asarray(imread(picture))[..., :3]


def test_the_browser_shows_the_verdict_the_ranking_and_the_plots(tmp_path: Path) -> None:
    document = comparison_document()
    dom = browse(tmp_path, render_report(document), "--dump-dom")
    text = " ".join(unescape(re.sub(r"<[^>]+>", " ", dom)).split())
    assert document["verdict"]["sentence"] in text
    assert "1 llama2-7b-pure 0.82" in text
    assert "training text seen (GB)" in text
    assert dom.count('role="img"') == 11


def test_names_with_markup_stay_text_in_the_browser(tmp_path: Path) -> None:
    document = comparison_document(["<img src=x onerror=document.title='owned'>", "tiny-b"])
    dom = browse(tmp_path, render_report(document), "--dump-dom")
    assert "<img" not in dom
    assert "<title>which-backbone: untuned comparison report</title>" in dom


@pytest.mark.parametrize("width", [520, 1400])  # chromium opens no window narrower than 500
@pytest.mark.parametrize("kind", ["comparison", "finetune"])
def test_nothing_is_wider_than_the_window(tmp_path: Path, width: int, kind: str) -> None:
    document = comparison_document() if kind == "comparison" else finetune_document()
    html = render_report(document).replace("</body>", MEASURE)
    dom = browse(tmp_path, html, f"--window-size={width},900", "--dump-dom")
    (title,) = re.findall(r"<title>(.*?)</title>", dom)
    plots = 11 if kind == "comparison" else 6
    assert unescape(title) == f"[{width},{width},[],{plots}]"


@pytest.mark.parametrize(("width", "many"), [(360, False), (400, False), (400, True)])
def test_nothing_is_wider_than_a_phone(tmp_path: Path, width: int, many: bool) -> None:
    page = render_report(made_up(250) if many else comparison_document()).replace("</body>", MEASURE)
    page = page.replace("document.title =", "parent.document.title =")
    frame = tmp_path / "phone.html"
    frame.write_text(page, encoding="utf-8")
    dom = browse(
        tmp_path,
        f"<title></title><iframe src='phone.html' style='border:0;width:{width}px;height:800px'></iframe>",
        "--allow-file-access-from-files",
        "--virtual-time-budget=2000",
        "--dump-dom",
    )
    (title,) = re.findall(r"<title>(.*?)</title>", dom)
    assert unescape(title) == f"[{width},{width},[],{10 if many else 11}]"


@pytest.mark.parametrize("mode", ["light", "dark", "print"])
def test_the_browser_asks_the_network_for_nothing_and_complains_of_nothing(tmp_path: Path, mode: str) -> None:
    """Whatever a page requests is in chromium's own log of the network, also where no host can be resolved."""
    assert CHROMIUM is not None
    file, network = tmp_path / "report.html", tmp_path / "network.json"
    file.write_text(render_report(made_up(250)), encoding="utf-8")
    end = {"light": ["--dump-dom"], "dark": [DARK, "--dump-dom"], "print": [f"--print-to-pdf={tmp_path / 'page.pdf'}"]}
    log = [f"--log-net-log={network}", "--enable-logging=stderr", "--v=0"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, *QUIET, profile, *log, *end[mode], file.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    assert "CONSOLE" not in ran.stderr
    asked = re.findall(r'"url":"(https?://[^"]*)"', network.read_text(encoding="utf-8"))
    assert not [url for url in asked if not CHROMIUMS_OWN.match(url)]
    if mode == "print":
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_a_console_message_and_a_request_would_be_seen(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    file, network = tmp_path / "page.html", tmp_path / "network.json"
    file.write_text("<script>console.error('seen')</script><img src='https://example.org/seen.png'>", encoding="utf-8")
    log = [f"--log-net-log={network}", "--enable-logging=stderr", "--v=0"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, *QUIET, profile, *log, "--dump-dom", file.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" in ran.stderr
    assert "https://example.org/seen.png" in network.read_text(encoding="utf-8")


def test_the_page_is_drawn_in_light_and_in_dark(tmp_path: Path) -> None:
    html = render_report(comparison_document())
    light = screenshot(tmp_path, html, "--window-size=1280,2400")
    dark = screenshot(tmp_path, html, "--window-size=1280,2400", DARK)
    assert light.shape == dark.shape == (2400, 1280, 3)
    assert np.median(light) > 0.95
    assert np.median(dark) < 0.15
    for picture in (light, dark):  # text and plots leave traces all the way down
        assert all(band.std() > 0.01 for band in np.array_split(picture, 8))


def test_the_colours_of_the_backbones_are_seen_in_both_modes(tmp_path: Path) -> None:
    html = render_report(comparison_document())
    for mode, colours in (((), ["0072b2", "d55e00", "009e73"]), ((DARK,), ["3a92d8", "e8762c", "1fb58a"])):
        picture = (screenshot(tmp_path, html, "--window-size=1280,3000", *mode) * 255).round().astype(int)
        for colour in colours:
            exact = [int(colour[place : place + 2], 16) for place in (0, 2, 4)]
            assert (np.abs(picture - exact).max(axis=2) <= 2).sum() > 200, colour
