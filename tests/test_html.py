"""Pages stand alone: everything escaped, nothing loaded, well-formed, no wider than a phone."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from analysis.html import pieces, tables_html
from analysis.sheet import Document, Sheet

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium installed")
VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = '<script>alert(1)</script> & "quoted" <b>'


class Checked(HTMLParser):
    """Raises where tags do not nest; keeps what a reader of the page would load or hear."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.loaded, self.headings, self.tags = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        self.ids += [found["id"]] if "id" in found else []
        self.loaded += [found[name] for name in ("src", "srcset", "data") if name in found]
        self.loaded += [found["href"]] if tag == "link" else []
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> in {self.open}"
        self.open.pop()


def check_page(text):
    """What every page of ours keeps to."""
    page = Checked(text)
    assert text.startswith("<!DOCTYPE html>") and '<html lang="en">' in text
    assert len(page.ids) == len(set(page.ids)), "an id is there twice"
    assert all(source.startswith("data:image/png;base64,") for source in page.loaded)
    assert not re.search(r"@import|url\(", text) and "<script" not in text
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(page.headings, page.headings[1:], strict=False))
    targets = [a["href"][1:] for tag, a in page.tags if tag == "a" and a["href"].startswith("#")]
    assert set(targets) <= set(page.ids)
    assert all(a.get("alt") for tag, a in page.tags if tag == "img")
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
    return page


def width_in_browser(page, width, folder):
    """(width of the page's content, width of its window) where Chromium lays it out in `width`."""
    frame = folder / "frame.html"
    frame.write_text(
        f'<iframe id="f" src="{page.as_uri()}" style="border:0;width:{width}px;height:2000px">'
        "</iframe><p id=told></p><script>onload = () => {"
        "const d = document.getElementById('f').contentDocument.documentElement;"
        "told.textContent = `told ${d.scrollWidth} of ${d.clientWidth}`}</script>",
        encoding="utf-8",
    )
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--allow-file-access-from-files",
        "--virtual-time-budget=5000", f"--user-data-dir={folder / 'profile'}", "--dump-dom",
        frame.as_uri(),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"told (\d+) of (\d+)", ran.stdout)
    assert found, ran.stderr[-2000:]
    return int(found[1]), int(found[2])


def a_document(entry="+0.315 [+0.274, +0.357]", columns=14):
    header = ("pair", "arm", *(f"column {i}" for i in range(columns)))
    rows = (("tiny-qwen2 tiny-sums", "(8,8,0) grpo", *[entry] * columns),) * 3
    sheet = Sheet("arms", "Arms", header, rows, lead=EVIL, notes=(EVIL, "n" * 300))
    return Document("4.2", EVIL, (EVIL,), (EVIL, "w" * 200), (sheet,))


def test_text_is_escaped_and_the_page_well_formed():
    text = tables_html([a_document(EVIL)], EVIL)
    check_page(text)
    assert text.count("&lt;script&gt;") > 5


def test_several_tables_have_a_list_of_contents():
    page = check_page(tables_html([a_document(), a_document()], "both"))
    assert {"grid-1", "grid-2", "grid-1-arms", "grid-2-arms"} <= set(page.ids)
    assert any(tag == "nav" for tag, _ in page.tags)


def test_key_columns_are_row_headers():
    page = Checked(tables_html([a_document(columns=1)], "t"))
    scopes = [a["scope"] for tag, a in page.tags if tag == "th"]
    assert scopes == ["col"] * 3 + ["row"] * 6


def test_a_number_keeps_to_its_interval():
    assert pieces("+0.3 [+0.2, +0.4]") == ["+0.3 ", "[+0.2, +0.4]", ""]
    assert pieces("0.3 (n=1)") == ["0.3 ", "(n=1)", ""]
    assert pieces("(8,8,0) [Errno 2] no") == ["(8,8,0) [Errno 2] no"]


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_a_wide_table_does_not_widen_the_page(tmp_path, width):
    path = tmp_path / "page.html"
    path.write_text(tables_html([a_document()], "t"), encoding="utf-8")
    assert width_in_browser(path, width, tmp_path) == (width, width)


@needs_chromium
def test_the_measure_sees_an_overflow(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<!DOCTYPE html><div style='width:900px'>x</div>", encoding="utf-8")
    assert width_in_browser(path, 390, tmp_path) == (908, 390)
