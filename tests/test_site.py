"""The site: what is built from notebooks, and how it behaves in a browser that has no network."""

import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from time import sleep
from types import SimpleNamespace

import pytest

from lungseg import site as under_test
from lungseg.core import SiteError, read_json
from lungseg.site import (
    Site,
    SiteWarning,
    build_site,
    check_out,
    execute_pages,
    keep_outputs,
    notebook_key,
    project_root,
    read_site,
    readme,
)

ROOT = Path(__file__).parent.parent

SETTINGS = """[DEFAULT]
lib_name = lungseg
user = toy
repo = toy
branch = main
title = A toy
description = Pages to try things on.
nbs_path = .
doc_path = _docs
doc_host = https://toy.example
doc_baseurl = /toy
custom_sidebar = True
tst_flags = notest slow
license = apache2
version = 0
author = A
keywords = a
copyright = c
status = 3
min_python = 3.11
audience = a
language = English
"""

QUARTO = """project:
  type: website
website:
  sidebar:
    contents:
      - href: nbs/index.ipynb
        text: Start
      - section: Chest
        contents: [nbs/01_ribs.ipynb, nbs/deep/02_heart.ipynb]
  page-footer: For `tests` only.
format:
  html:
    theme: {light: cosmo, dark: darkly}
    css: nbs/styles.css
    toc: true
bibliography: nbs/references.bib
"""

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

RIBS = [
    "#| default_exp ribs",
    "# Ribs\n> How many there are.",
    """## Counting {#sec-counting}

In @sec-counting, @eq-pairs and @fig-two; see @tbl-ribs and @gray1858.[^1]

[^1]: A note.""",
    "$$ n = 2 \\cdot 12 $$ {#eq-pairs}",
    """#| export
def ribs(
    pairs: int,  # pairs of ribs
) -> "Whatever":  # single ribs
    "Count ribs."
    return 2 * pairs""",
    f"""#| label: fig-two
#| fig-cap: Two pixels.
#| fig-alt: A black square.
from base64 import b64decode
from IPython.display import Image, display
display(Image(b64decode("{PIXEL}")))""",
    """#| label: tbl-ribs
#| tbl-cap: All of them.
#| echo: false
import pandas as pd
pd.DataFrame({'ribs': [24]}, index=['adult'])""",
    "#| code-fold: true\nprint(6 * 4)",
    "#| include: false\nprint('nobody sees this')",
    "#| output: asis\nprint('## Made by a cell\\n\\n- *item*')",
    "#| echo: false\nimport sys\nprint('noise', file=sys.stderr)",
    """code: from IPython.display import HTML
HTML('<b id="verbatim">A `ribs` <script>window.ran = 1</script></b>')""",
    """::: {.callout-warning}
## Mind
Floating ribs.
:::

::: {.callout-note collapse=true}
## More
Hidden at first.
:::""",
    "```python\n" + "x = " + " + ".join(f"rib_{i}" for i in range(60)) + "\n```",
    "| a | b |\n|---|---|\n| " + "wide " * 60 + " | 2 |",
    "| part | cases | who |\n|---|--:|---|\n| test | 24 | ribs |",
    "Back [home](index.ipynb), on to the [heart](deep/02_heart.ipynb#beat), `ribs`.",
]
PAGES = {
    "index.ipynb": ["# Start\n> Here.", "See the [ribs](01_ribs.ipynb)."],
    "01_ribs.ipynb": RIBS,
    "deep/02_heart.ipynb": [
        "# Heart",
        "## Beat\n\nThe pericardium is a sac.",
        "Back to [ribs](../01_ribs.ipynb).",
    ],
}
BIB = "@book{gray1858, author={Gray, Henry}, title={Anatomy}, year={1858}, publisher={Parker}}\n"


def write_project(folder: Path, pages: dict[str, list[str]], quarto: str = QUARTO) -> Path:
    (folder / "nbs").mkdir(parents=True)
    (folder / "settings.ini").write_text(SETTINGS)
    (folder / "_quarto.yml").write_text(quarto)
    (folder / "nbs" / "styles.css").write_text("/* none */\n")
    (folder / "nbs" / "references.bib").write_text(BIB)
    for name, sources in pages.items():
        cells = []
        for i, source in enumerate(sources):
            code = source.startswith(("#|", "code:"))
            cell = {"cell_type": "code" if code else "markdown", "id": f"c{i}", "metadata": {}}
            cell["source"] = source.removeprefix("code:").strip()
            cells.append(cell | ({"outputs": [], "execution_count": None} if code else {}))
        path = folder / "nbs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    pytest.importorskip("nbdev", reason="the report extra is not installed")
    pytest.importorskip("pypandoc", reason="the report extra is not installed")
    return write_project(tmp_path_factory.mktemp("site") / "toy", PAGES)


@pytest.fixture(scope="module")
def site(toy) -> Path:
    return build_site(toy, toy.parent / "out").parent


@pytest.fixture(scope="module")
def page(site) -> str:
    return (site / "nbs" / "ribs.html").read_text()


# ---- what is built


def test_addresses_are_those_of_nbdev_and_quarto(site):
    made = {p.relative_to(site).as_posix() for p in site.rglob("*.html")}
    assert made == {"index.html", "nbs/index.html", "nbs/ribs.html", "nbs/deep/heart.html"}


def test_references_become_numbered_links(page):
    for name, text in [("fig-two", "Figure"), ("tbl-ribs", "Table"), ("eq-pairs", "Equation")]:
        assert re.search(rf'<a href="#{name}"[^>]*>{text}\u00a01</a>', page), name
        assert len(re.findall(rf'\sid="{name}"', page)) == 1
    assert '<a href="#sec-counting"' in page


def test_math_is_mathml_and_citations_are_resolved(page):
    assert "<math" in page and "Gray" in page and "References</h1>" in page
    assert "@gray1858" not in page


def test_options_decide_what_of_a_cell_is_shown(page):
    assert "nobody sees this" not in page and "noise" not in page
    assert '<details class="code-fold"><summary>Code</summary>' in page
    assert "<li><em>item</em></li>" in page
    assert "pd.DataFrame" not in re.sub("<[^>]+>", "", page) and "<td>24</td>" in page


def test_html_outputs_are_verbatim(page):
    assert '<b id="verbatim">A `ribs` <script>window.ran = 1</script></b>' in page


def test_pictures_lie_beside_the_page_with_alt_text(site, page):
    assert (site / "nbs/ribs_files/figure-html/fig-two-1.png").is_file()
    assert re.search(r'<img src="ribs_files/figure-html/fig-two-1.png"[^>]*alt="A black square."', page)


def test_an_exported_function_shows_its_signature_as_written(page):
    text = re.sub("<[^>]+>", "", page)
    assert "pairs: int,  # pairs of ribs" in text and "Whatever" in text and "Count ribs." in text
    assert "return 2 * pairs" not in text


def test_links_between_notebooks_become_links_between_pages(page):
    assert 'href="index.html"' in page and 'href="deep/heart.html#beat"' in page
    assert "toy.example" not in page


def test_a_second_build_is_the_same_and_runs_nothing(toy, site, monkeypatch):
    before = {p.relative_to(site): p.read_bytes() for p in site.rglob("*") if p.is_file()}
    monkeypatch.setattr("lungseg.site.run_notebook", lambda *a, **k: pytest.fail("executed again"))
    build_site(toy, site)
    assert {p.relative_to(site): p.read_bytes() for p in site.rglob("*") if p.is_file()} == before


def test_nothing_is_written_into_the_project(toy, site):
    assert {p.name for p in toy.iterdir()} == {"settings.ini", "_quarto.yml", "nbs", "_build"}
    assert "24" not in json.loads((toy / "nbs/01_ribs.ipynb").read_text())["cells"][7]["outputs"]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["# A", "See @fig-none."], "answers to @fig-none"),
        (["# A", "As @nobody says."], "cites @nobody|nobody not found"),
        (["# A", "[b](02_b.ipynb)"], "links to 02_b.ipynb"),
        (["# A", "![b](b.png)"], "links to b.png"),
        (["# A", "code: 1 / 0"], r"index.ipynb, cell 1 \(1 / 0\): ZeroDivisionError"),
    ],
)
def test_what_leads_nowhere_fails_the_build_and_leaves_the_old_site(tmp_path, cells, message):
    pytest.importorskip("nbdev")
    quarto = "website: {sidebar: {contents: [nbs/index.ipynb]}}\nbibliography: nbs/references.bib\n"
    project = write_project(tmp_path / "toy", {"index.ipynb": cells}, quarto)
    out = tmp_path / "out"
    (out / "site_libs").mkdir(parents=True)
    (out / "site_libs" / "lungseg.txt").touch()
    (out / "old.html").write_text("old")
    with pytest.raises(SiteError, match=message) as caught:
        build_site(project, out, execute="1 / 0" in cells[-1])
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)
    assert (out / "old.html").read_text() == "old"


def test_unknown_keys_are_named(toy, tmp_path):
    project = tmp_path / "toy"
    shutil.copytree(toy, project, ignore=shutil.ignore_patterns("_build"))
    (project / "_quarto.yml").write_text(QUARTO.replace("    toc: true", "    toc: true\n    fontsize: 12pt"))
    with pytest.warns(SiteWarning, match=r"format\.html\.fontsize"):
        assert isinstance(read_site(project), Site)


def test_a_folder_of_others_is_refused_before_anything_runs(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("lungseg.site.execute_pages", lambda *a, **k: pytest.fail("executed"))
    (tmp_path / "out" / "site_libs" / "bootstrap").mkdir(parents=True)
    (tmp_path / "file").touch()
    for out in (tmp_path / "out", tmp_path / "file", toy):
        with pytest.raises(SiteError, match="left alone"):
            build_site(toy, out)
    assert (tmp_path / "out" / "site_libs" / "bootstrap").is_dir()
    check_out(tmp_path / "new")


def test_a_missing_extra_is_told_before_anything_runs(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("lungseg.site.execute_pages", lambda *a, **k: pytest.fail("executed"))
    monkeypatch.setitem(sys.modules, "nbclient", None)
    with pytest.raises(SiteError, match=r"needs nbclient: pip install 'lungseg\[report\]'"):
        build_site(toy, tmp_path / "out")


def test_an_old_site_comes_back_if_the_new_one_cannot_take_its_place(toy, site, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(site, out)
    rename = Path.rename

    def refuse(path, target):
        if path.name == "new":
            raise PermissionError("not now")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        build_site(toy, out)
    assert (out / "nbs" / "ribs.html").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_interrupt_starts_no_further_notebook(toy, tmp_path, monkeypatch):
    started = []

    def interrupted(jobs, *args, **kwargs):
        next(iter(jobs))
        raise KeyboardInterrupt

    monkeypatch.setattr("lungseg.site.run_notebook", lambda p, s, **k: started.append(s) or sleep(0.2) or [])
    monkeypatch.setattr("lungseg.site.progress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute_pages(read_site(toy), tmp_path, workers=1)
    assert len(started) < 3


def test_the_kernel_of_a_notebook_ends_with_it(tmp_path, monkeypatch):
    "Also of one that fails: seventy kernels that wait for the last notebook hold a machine's memory."
    project, managers = (
        write_project(tmp_path / "toy", {"a.ipynb": ["code: 6 * 4"], "b.ipynb": ["code: 1 / 0"]}),
        [],
    )
    make = under_test._kernel_manager
    monkeypatch.setattr(under_test, "_kernel_manager", lambda: managers.append(make()) or managers[-1])
    under_test.run_notebook(project, "nbs/a.ipynb")
    with pytest.raises(SiteError, match="ZeroDivisionError"):
        under_test.run_notebook(project, "nbs/b.ipynb")
    assert [m.has_kernel for m in managers] == [False, False]


def test_what_lies_beside_a_run_makes_its_pages_anew(tmp_path):
    run = tmp_path / "report" / "run"
    (run / "evaluation").mkdir(parents=True)
    project = write_project(tmp_path / "toy", {"report/01_data.ipynb": ["# Data", "code: 6 * 4"]})
    before = notebook_key(project, "nbs/report/01_data.ipynb", run=run)
    write = {
        "run/history.csv": "epoch\n1\n",
        "run/evaluation/summary.json": '{"store": "../store"}',
        "store/store.json": "{}",
        "store/Case_000/case.json": "{}",
        "tags.csv": "case\n",
        "differences.json": "{}",
        "report.json": '{"source": "phantom", "seconds": {}}',
    }
    for name, text in write.items():
        path = tmp_path / "report" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        after = notebook_key(project, "nbs/report/01_data.ipynb", run=run)
        assert after != before, name
        before = after
    (tmp_path / "report" / "report.json").write_text('{"source": "phantom", "seconds": {"Site": 2.5}}')
    assert notebook_key(project, "nbs/report/01_data.ipynb", run=run) == before


def test_a_module_changed_behind_another_makes_a_page_anew(tmp_path):
    project = write_project(tmp_path, {"index.ipynb": ["# A", "code: from lungseg.evaluate import counted"]})
    shutil.copytree(
        ROOT / "lungseg", project / "lungseg", ignore=shutil.ignore_patterns("__pycache__", "_project")
    )
    key = notebook_key(project, "nbs/index.ipynb")
    for module, same in [("metrics", False), ("site", True)]:
        with (project / "lungseg" / f"{module}.py").open("a") as file:
            file.write("\nCHANGED = True\n")
        assert (notebook_key(project, "nbs/index.ipynb") == key) is same, module
        key = notebook_key(project, "nbs/index.ipynb")


def test_outputs_are_not_kept_inside_an_installed_package(tmp_path, monkeypatch):
    pytest.importorskip("yaml", reason="the report extra is not installed")
    project = write_project(tmp_path / "_project", {"index.ipynb": ["# A"], "01_ribs.ipynb": ["code: 1"]}, "")
    monkeypatch.setattr("lungseg.site._package", lambda: tmp_path)
    with pytest.raises(SiteError, match="not in those of the installed package"):
        keep_outputs(project, "nbs")


def test_quarto_is_handed_the_processed_notebooks(toy, tmp_path, monkeypatch):
    stub = tmp_path / "bin" / "quarto"
    stub.parent.mkdir()
    lines = ["#!/bin/sh", 'echo "$@" > called', "mkdir _docs", "cp nbs/01_ribs.ipynb called _docs/"]
    stub.write_text("\n".join([*lines, "touch _docs/index.html"]) + "\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(stub.parent), prepend=":")
    out = build_site(toy, tmp_path / "out", work=tmp_path / "work").parent
    assert (out / "called").read_text().strip() == "render --no-cache"
    given = json.loads((out / "01_ribs.ipynb").read_text())
    kinds = {k for c in given["cells"] for o in c.get("outputs", []) for k in o.get("data", {})}
    assert "text/html" not in kinds and "text/markdown" in kinds


@pytest.mark.skipif(not shutil.which("quarto"), reason="Quarto is not installed")
def test_quarto_renders_a_site(toy, tmp_path):
    out = build_site(toy, tmp_path / "out", work=tmp_path / "work").parent
    page = (out / "nbs" / "ribs.html").read_text(encoding="utf-8")
    assert '<b id="verbatim">' in page and 'id="fig-two"' in page and "Count ribs." in page
    assert (out / "index.html").is_file() and (out / "site_libs" / "lungseg.txt").is_file()


# ---- the project's own pages


def test_importing_the_module_is_cheap():
    heavy = ["nbdev", "pypandoc", "yaml", "torch", "nbclient"]
    code = f"import sys, lungseg.site; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_notebook_is_in_the_sidebar():
    found = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "nbs").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in p.parts
    }
    entries = {e.source for top in read_site(ROOT).sidebar for e in top.walk() if e.source}
    assert found == entries


@pytest.mark.parametrize(
    ("report", "tags", "source"),
    [
        ('{"source": "phantom"}', "a table", "phantom"),
        ('{"source": "arrays", "seconds": {}}', None, "arrays"),
        ('{"seconds": {}}', "a table", "DICOM"),
        (None, None, "arrays"),
    ],
)
def test_report_pages_know_where_the_data_came_from(tmp_path, report, tags, source):
    if report:
        (tmp_path / "report.json").write_text(report)
    for name in ("01_data", "02_methods", "06_discussion"):
        cells = json.loads((ROOT / "nbs" / "report" / f"{name}.ipynb").read_text())["cells"]
        [code] = [c for c in map("".join, (c["source"] for c in cells)) if '"report.json"' in c]
        known = {"result": SimpleNamespace(run=tmp_path / "run"), "tags": tags, "read_json": read_json}
        exec(code, known)
        assert known["source"] == source, name


def test_the_readme_is_the_index():
    pytest.importorskip("pypandoc", reason="the report extra is not installed")
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme(ROOT)
    assert project_root(ROOT / "tests") == ROOT


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_home_page_says_what_each_dependency_is_for():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## What it stands on")[2].partition("\n## ")[0]
    own, *parts = re.split(r"^\| *`lungseg\[(\w+)\]`", section, flags=re.MULTILINE)
    tables = {"": own} | {f"{extra}_": table for extra, table in zip(parts[::2], parts[1::2], strict=True)}
    assert {f"{kind}requirements" for kind in tables} == {k for k in config["DEFAULT"] if "requirements" in k}
    for kind, table in tables.items():
        lines = config["DEFAULT"][f"{kind}requirements"].replace("\\", " ").split()
        needed = [re.match(r"[\w-]+", line)[0] for line in lines]
        rows = re.findall(r"^\| *(\w[\w, -]*?) *\| *\w", table, re.MULTILINE)
        told = [name for row in rows for name in row.split(", ") if name != "dependency"]
        assert sorted(told) == sorted(needed)


# ---- in a browser, from file://, without a network


PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}


def test_pages_open_without_a_network(visit, site):
    for path in sorted(site.rglob("nbs/**/*.html")):
        page = visit.open(path)
        assert page.locator("h1").first.inner_text()
        assert page.locator(".sidebar [aria-current=page]").count() == 1
    assert visit.open(site / "nbs/ribs.html").evaluate("window.ran") == 1


def test_the_root_leads_home(visit, site):
    visit.page.goto((site / "index.html").as_uri())
    visit.page.wait_for_url("**/nbs/index.html")


def test_the_theme_is_switched_and_remembered(visit, site):
    page = visit.open(site / "nbs/index.html")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("button.theme")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light != dark
    page = visit.open(site / "nbs/deep/heart.html")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


@pytest.mark.parametrize("visit", [{"color_scheme": "dark"}], indirect=True)
def test_a_dark_system_gets_dark_pages(visit, site):
    page = visit.open(site / "nbs/index.html")
    assert (
        sum(
            map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3])
        )
        < 150
    )


def test_search_finds_a_word_and_goes_there(visit, site):
    page = visit.open(site / "nbs/ribs.html")
    page.keyboard.press("/")
    page.keyboard.type("pericard")
    assert "Beat" in page.locator("#hits li").first.inner_text()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**/deep/heart.html#beat")


@pytest.mark.parametrize("visit", [PHONE], indirect=True)
def test_on_a_phone_nothing_hangs_over_and_the_menu_opens(visit, site):
    page = visit.open(site / "nbs/ribs.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    link = page.locator(".sidebar a", has_text="Heart")
    assert not link.is_visible()
    page.click("button.menu")
    link.click()
    page.wait_for_url("**/heart.html")


@pytest.mark.parametrize("visit", [PHONE, {}], indirect=True)
def test_wide_code_and_tables_scroll_inside_their_box(visit, site):
    page = visit.open(site / "nbs/ribs.html")
    inside = "e => e.scrollWidth > e.clientWidth && e.getBoundingClientRect().right <= innerWidth"
    assert any(e.evaluate(inside) for e in page.locator("pre").all())


def test_cells_of_a_table_keep_apart_and_the_first_column_stands_at_the_margin(visit, site):
    page = visit.open(site / "nbs/ribs.html")
    text = """e => { const r = document.createRange(); r.selectNodeContents(e);
        const b = r.getBoundingClientRect(); return [b.left, b.right]; }"""
    table = page.locator("table", has_text="who")
    for row in ("th", "td"):
        part, cases, who = [cell.evaluate(text) for cell in table.locator(row).all()]
        assert part[1] + 8 <= cases[0] and cases[1] + 8 <= who[0]
        assert abs(part[0] - table.evaluate("e => e.getBoundingClientRect().left")) < 1


def test_pages_can_be_read_without_scripts(browser, site):
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto((site / "nbs/ribs.html").as_uri())
    assert page.locator(".sidebar a", has_text="Heart").is_visible()
    assert page.locator("math").first.is_visible()
    context.close()
