"""The page that verify writes, in a real browser: its tables fit a window of 1300 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import lucid_deploy as ld
from lucid_deploy.cli import main
from tests.compat.browser import browsing, find_browser, serving
from tests.parity.faults import change_weight

pytestmark = pytest.mark.compat
WIDTH = 1300
# The headings of tables that do not fit their frames, and whether the page itself is too wide.
TOO_WIDE = """new Promise((settled) => {
  const look = () => {
    if (document.readyState !== "complete" || !document.querySelector("table")) return setTimeout(look, 50);
    const tables = [...document.querySelectorAll("table")];
    settled({
      count: tables.length,
      wide: tables
        .filter((table) => table.parentElement.scrollWidth > table.parentElement.clientWidth)
        .map((table) => table.caption?.innerText ?? table.rows[0].innerText),
      page: document.documentElement.scrollWidth > innerWidth,
    });
  };
  look();
})"""


@pytest.mark.parametrize("status", [0, 1], ids=["passed", "failed"])
def test_the_tables_of_a_report_fit_the_window(tmp_path: Path, status: int) -> None:
    browser = find_browser()
    if browser is None:
        pytest.skip("not run: chromium is missing; Debian's package is chromium")
    ld.export("demo", tmp_path / "artifact")
    if status == 1:
        change_weight(tmp_path / "artifact", "model.layers.1.self_attn.v_proj.weight")
    site = tmp_path / "site"
    site.mkdir()
    command = ["verify", str(tmp_path / "artifact"), "--quick", "--report", str(site / "page.html")]
    assert CliRunner().invoke(main, command).exit_code == status
    with serving(site) as url, browsing(browser, tmp_path / "profile") as page:
        page.call("Emulation.setDeviceMetricsOverride", width=WIDTH, height=900, deviceScaleFactor=1, mobile=False)
        page.call("Page.navigate", url=f"{url}page.html")
        found: dict[str, Any] = page.evaluate(TOO_WIDE)
    assert found["count"] >= 6
    assert (found["wide"], found["page"]) == ([], False)
