"""The evidence page in a real browser: it loads, draws its figures, and has nothing to complain about."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evidence.html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.mark.optional
def test_page_loads_in_chromium(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed (Debian: apt-get install chromium)")
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    # a copy that reports, as text that --dump-dom shows, what a reader would see: sizes of figures, broken pictures;
    # no picture is lazy in it, since the event "load", which the browser's dump waits for, waits for the others alone
    eager = PAGE.read_text().replace(' loading="lazy"', "")
    page.write_text(eager.replace('"../benchmarks/', f'"{PAGE.parents[1]}/benchmarks/') + PROBE)
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}/p",
    ]
    options += ["--virtual-time-budget=5000", "--window-size=1200,2000", "--allow-file-access-from-files"]
    dumped = subprocess.run(
        [browser, *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in dumped.stderr
    found = re.search(r"figures=(\d+) flat=(\d+) wide=(\d+) broken=(\d+)", dumped.stdout)
    assert found is not None, dumped.stdout[-500:] + dumped.stderr
    figures, flat, wide, broken = map(int, found.groups())
    assert figures >= 3
    assert (flat, wide, broken) == (0, 0, 0)
    subprocess.run(
        [browser, *options, f"--screenshot={picture}", page.as_uri()], capture_output=True, timeout=120, check=True
    )
    assert picture.stat().st_size > 20_000


PROBE = """
<script>
window.addEventListener("load", () => {
  for (const fold of document.querySelectorAll("details")) { fold.open = true; }
  const figures = [...document.querySelectorAll("figure svg")];
  const boxes = figures.map((figure) => figure.getBoundingClientRect());
  const flat = boxes.filter((box) => box.height < 50 || box.width < 200).length;
  const wide = document.documentElement.scrollWidth > window.innerWidth ? 1 : 0;
  const broken = [...document.querySelectorAll("img")].filter((picture) => !(picture.naturalWidth > 0)).length;
  document.body.append(`figures=${figures.length} flat=${flat} wide=${wide} broken=${broken}`);
});
</script>
"""
