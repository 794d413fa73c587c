"""The site is built without a warning and without a network, and its pages load nothing from anywhere else."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

needs_sphinx = pytest.mark.skipif(
    any(
        importlib.util.find_spec(name) is None
        for name in ("sphinx", "myst_parser", "sphinx_gallery", "pydata_sphinx_theme")
    ),
    reason="building the site needs the extra `docs`",
)
ELSEWHERE = re.compile(r"^(?:https?:)?//")


class Loads(HTMLParser):
    """What a page makes the browser fetch. Links that a reader may follow are not among it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self._style = False
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._style = tag == "style"
        self.found += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]
        if tag in ("link", "image", "use"):
            self.found += [given.get("href", ""), given.get("xlink:href", "")]
        self.found += addresses(given.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self._style:
            self.found += addresses(data)


def addresses(style: str) -> list[str]:
    """What a style sheet loads."""
    return re.findall(r"""(?:url\(|@import )\s*["']?([^"')\s;]+)""", style)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, its tutorials not run (`test_tutorials.py` does)."""
    out = tmp_path_factory.mktemp("site")
    options = ["-q", "-W", "--keep-going", "-D", "plot_gallery=0", "-b", "html", "-d", str(out / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, "docs", str(out / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


@needs_sphinx
def test_the_site_loads_nothing_from_elsewhere(site):
    pages, styles = sorted(site.rglob("*.html")), sorted(site.rglob("*.css"))
    assert len(pages) > 50
    loaded = {(str(page.relative_to(site)), address) for page in pages for address in Loads(page).found}
    loaded |= {(style.name, address) for style in styles for address in addresses(style.read_text(encoding="utf-8"))}
    assert len(loaded) > 500
    assert [one for one in sorted(loaded) if ELSEWHERE.match(one[1])] == []


@needs_sphinx
def test_formulas_are_drawn_by_the_browser_itself(site):
    assert (site / "methods" / "abmil.html").read_text(encoding="utf-8").count('<math xmlns="http') >= 1
    assert not any(
        "mathjax" in address.lower() for page in (site / "methods").glob("*.html") for address in Loads(page).found
    )


@needs_sphinx
def test_the_reference_describes_the_layers(site):
    text = (site / "reference" / "generated" / "aggregators.html").read_text(encoding="utf-8")
    assert "mil_jax.aggregators.abmil" in text
    assert "mil_jax.aggregators.transmil" in text


def test_what_is_loaded_from_elsewhere_is_noticed(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<link href="https://a/x.css"><script src="//b/x.js"></script><img src="here.png">'
        "<style>@import 'https://c/x.css'; p { background: url(https://d/x.png) }</style><a href='https://e/'>read</a>"
    )
    found = [address for address in Loads(page).found if ELSEWHERE.match(address)]
    assert found == ["https://a/x.css", "//b/x.js", "https://c/x.css", "https://d/x.png"]
