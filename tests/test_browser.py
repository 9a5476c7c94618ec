"""The report in a real browser, at the widths of a desktop and of a phone.

Needs Chromium (Debian: ``apt-get install chromium``); skipped where there is none.
"""

import json
import re
import shutil
import subprocess
from html import escape, unescape

import pytest
from handwritten import make_run

from fedjax_masks.analysis import report, write_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
ALGORITHMS = ("fedavg", "fedprox", "fedmask", "fedskel", "mpfl", "adp", "ecofed", "local", "splitfed")

# An inner frame is as narrow as it is told, which windows of a desktop browser are not.
PROBE = """<!DOCTYPE html><meta charset="utf-8">
<iframe id="frame" style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<pre id="found"></pre>
<script>
window.onerror = message => {{ document.getElementById("found").textContent = message; }};
document.getElementById("frame").onload = event => {{
  const inner = event.target.contentDocument, root = inner.documentElement;
  const box = node => node.getBoundingClientRect();
  const shown = [...inner.querySelectorAll("figure")];
  const loose = [...inner.querySelectorAll("main *:not(svg *)")].filter(
    node => !node.closest(".scroll") && box(node).right > root.clientWidth + 1);
  const text = [...inner.querySelectorAll("figure svg text")].filter(node => node.textContent.trim());
  const cards = [...inner.querySelectorAll(".cards tbody tr")];
  const figures = shown.map(node => box(node));
  document.getElementById("found").textContent = JSON.stringify({{
    client: root.clientWidth,
    scroll: root.scrollWidth,
    loose: loose.map(node => node.outerHTML.slice(0, 80)),
    first: shown[0].id,
    abreast: figures.filter(one => Math.abs(one.top - figures[0].top) < 5).length,
    sizes: figures.map(one => [one.width, one.height]),
    smallest: Math.min(...text.map(node => box(node).height)),
    outside: text.filter(node => box(node).left < -1 || box(node).right > root.clientWidth + 1).length,
    sticky: inner.defaultView.getComputedStyle(inner.querySelector(".runs tbody th")).position,
    cards: cards.length,
    blank: cards.filter(card => ![...card.querySelectorAll("td")].some(cell => box(cell).height)).length,
  }});
}};
</script>
"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module", autouse=True)
def coarse_images():
    """Images beside the page are coarse, since the page does not show them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_PNG_DPI", 20)
        yield


@pytest.fixture(scope="module")
def page(coarse_images, tmp_path_factory):
    """The report of nine algorithms by two seeds, with every figure there is."""
    root = tmp_path_factory.mktemp("sweep")
    for place, name in enumerate(ALGORITHMS):
        for seed in range(2):
            make_run(
                root / name / str(seed),
                algorithm=name,
                personal=0.5 + 0.03 * place + 0.02 * seed,
                up=10_000 * 3**place,
                seed=seed,
                extra={"density/conv1": 0.4} if name == "fedmask" else None,
                spent={"client_flops_total": 1e9, "sim_seconds": 3.0, "energy_joules": 7.0},
            )
    return write_report([root], tmp_path_factory.mktemp("page") / "cmp.html")


def look(page, width, tmp_path):
    """What a browser measures of the page in a frame of that width."""
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(width=width, page=escape(page.read_text("utf-8"))), "utf-8")
    command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000"]
    done = subprocess.run(
        [*command, "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(unescape(found[1]))


@pytest.mark.slow
@pytest.mark.parametrize(("width", "abreast"), [pytest.param(1280, 2, marks=pytest.mark.slow), (390, 1)])
def test_nothing_sticks_out_at_any_width(page, tmp_path, width, abreast):
    found = look(page, width, tmp_path)
    assert found["scroll"] <= found["client"] <= width
    assert found["loose"] == []
    assert found["outside"] == 0
    assert found["first"] == "accuracy-bytes"
    assert found["abreast"] == abreast
    assert len(found["sizes"]) == 10
    assert all(width / abreast * 0.7 < w and h > 100 for w, h in found["sizes"])
    assert found["smallest"] > 6
    assert found["sticky"] == "sticky"


def test_a_phone_shows_who_has_not_reached_the_target(tmp_path):
    for name, personal in (("fedavg", 0.3), ("fedmask", 0.9)):
        make_run(tmp_path / "runs" / name, algorithm=name, personal=personal)
    found = look(write_report([tmp_path / "runs"], tmp_path / "two.html", target=0.8), 390, tmp_path)
    assert found["cards"] >= 4
    assert found["blank"] == 0
