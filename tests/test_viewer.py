"""The viewer in a real browser: the static page from `file://` without network, the widget in JupyterLab."""

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest

from lungseg.viewer import Viewer, _static_html

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

SPACING = (3.0, 1.5, 1.5)
AFFINE = np.array([[0, 0, 1.5, -60], [0, 1.5, 0, -40], [3, 0, 0, -30], [0, 0, 0, 1.0]])


def ball(centre, radius_mm, shape=(30, 56, 80)):
    away = (np.indices(shape).T - centre).T * np.reshape(SPACING, (3, 1, 1, 1))
    return (away**2).sum(0) <= radius_mm**2


@pytest.fixture(scope="module")
def case():
    "Water in air with two balls of lung; the prediction's are too small, and it has a third one."
    body = ball((15, 28, 40), 41)
    ref = ball((15, 28, 26), 16) | ball((15, 28, 54), 16)
    pred = ball((15, 28, 26), 14) | ball((15, 28, 54), 14) | ball((25, 28, 40), 6)
    hu = np.where(ref, -850, np.where(body, 40, -1000))
    noise = np.random.default_rng(0).normal(0, 15, hu.shape)
    return np.clip(hu + noise, -1024, 3000).astype(np.int16), ref, pred


@pytest.fixture
def show(browser, tmp_path):
    "Open HTML from a file, offline; at the end nothing may have been asked of the network or gone wrong."
    contexts, wrong = [], []

    def opened(html, *, ready=1, allow_errors=False, **options):
        context = browser.new_context(
            offline=True, **({"viewport": {"width": 1000, "height": 800}} | options)
        )
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: r.url.startswith(("http", "ws")) and wrong.append(r.url))
        if not allow_errors:
            page.on("pageerror", lambda e: wrong.append(str(e)))
            page.on("console", lambda m: m.type in ("error", "warning") and wrong.append(m.text))
        path = tmp_path / f"page{len(contexts)}.html"
        path.write_text(html, encoding="utf-8")
        page.goto(path.as_uri())
        if ready:
            page.wait_for_function(f"document.querySelectorAll('.lsv[data-ready]').length === {ready}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def page(show, case):
    hu, ref, pred = case
    page = show(Viewer(hu, ref, pred, affine=AFFINE, title="Balls", slice=15).to_html(page=True))
    page.focus(".lsv-stage")
    return page


def pixels(page, nth=0) -> str:
    return page.locator(".lsv-picture").nth(nth).evaluate("c => c.toDataURL()")


def image(page) -> np.ndarray:
    "What the canvas shows, as (row, column, RGBA)."
    data = page.locator(".lsv-picture").evaluate(
        """c => { const shadow = new OffscreenCanvas(c.width, c.height);
                  const copy = shadow.getContext('2d', { willReadFrequently: true });
                  copy.drawImage(c, 0, 0); let s = '';
                  const d = copy.getImageData(0, 0, c.width, c.height).data;
                  for (let i = 0; i < d.length; i += 4096) s += String.fromCharCode(...d.slice(i, i + 4096));
                  return [c.width, c.height, btoa(s)]; }"""
    )
    return np.frombuffer(base64.b64decode(data[2]), np.uint8).reshape(data[1], data[0], 4).astype(int)


def now(page, what: str) -> str:
    "A data attribute of the viewer, after it has drawn once more."
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.locator(".lsv").first.get_attribute(f"data-{what}")


def spoken(page) -> str:
    now(page, "slice")
    return page.locator(".lsv-stage").get_attribute("aria-label")


def test_the_wheel_scrolls_through_slices(page):
    before = pixels(page)
    page.hover(".lsv-stage")
    page.mouse.wheel(0, -120)
    page.wait_for_selector(".lsv[data-slice='17']")
    assert pixels(page) != before
    page.mouse.wheel(0, 120)
    page.wait_for_selector(".lsv[data-slice='15']")


def test_keys_move_turn_and_change_the_window(page):
    for key, slice_ in [
        ("ArrowUp", "16"),
        ("ArrowDown", "15"),
        ("PageUp", "25"),
        ("Home", "0"),
        ("End", "29"),
    ]:
        page.keyboard.press(key)
        assert now(page, "slice") == slice_
    for key, plane in [("c", "coronal"), ("s", "sagittal"), ("a", "axial")]:
        page.keyboard.press(key)
        assert now(page, "plane") == plane
    assert now(page, "slice") == "29", "each plane remembers its slice"
    for key, words in [
        ("2", "level 40 width 400"),
        ("3", "level 400 width 1800"),
        ("1", "level -600 width 1500"),
    ]:
        page.keyboard.press(key)
        assert words in spoken(page)


def test_dragging_changes_level_and_width(page):
    page.hover(".lsv-stage")
    page.mouse.down()
    box = page.locator(".lsv-stage").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 50, box["y"] + box["height"] / 2 - 20)
    page.mouse.up()
    assert "level -660 width 1700" in spoken(page)


def test_masks_can_be_hidden_and_drawn_in_three_ways(page):
    seen = {pixels(page)}
    for key in ("m", "m", "m", "r", "p"):  # fill, errors, outline again, without reference, without both
        page.keyboard.press(key)
        now(page, "slice")
        seen.add(pixels(page))
    assert len(seen) == 5
    rgb = image(page)[60:-60, 60:-60, :3]
    assert np.ptp(rgb, axis=2).max() == 0, "no mask, no colour"


def test_errors_have_the_colours_of_the_legend(page):
    page.keyboard.press("m")
    page.keyboard.press("m")
    for _ in range(5):
        page.keyboard.press("]")
    page.keyboard.press("Home")
    for _ in range(24):  # slice 24: reference and prediction each have voxels of their own
        page.keyboard.press("ArrowUp")
    now(page, "slice")
    colours = {tuple(c) for c in image(page).reshape(-1, 4)[:, :3]}
    assert (255, 159, 28) in colours, "prediction only: orange"
    page.keyboard.press("Home")
    for _ in range(11):
        page.keyboard.press("ArrowUp")
    now(page, "slice")
    assert (86, 170, 255) in {tuple(c) for c in image(page).reshape(-1, 4)[:, :3]}, "reference only: blue"
    assert page.locator(".lsv-legend li:visible").count() >= 3


def test_the_dice_strip_can_be_clicked_and_knows_the_worst_slice(page, case):
    _, ref, pred = case
    box = page.locator(".lsv-strip").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2 + 1, box["y"] + 10)
    assert now(page, "slice") == "15"
    a, b = ref[15], pred[15]
    shown = page.locator(".lsv-scores dd").all_inner_texts()
    assert shown[0] == f"{2 * (a & b).sum() / (a.sum() + b.sum()):.3f}"
    assert shown[1] == f"{2 * (ref & pred).sum() / (ref.sum() + pred.sum()):.3f}"
    page.keyboard.press("Home")
    now(page, "slice")
    assert page.locator(".lsv-scores dd").first.inner_text() == "NaN"
    page.keyboard.press("w")
    worst = int(now(page, "slice"))
    assert not (ref[worst] & pred[worst]).any() and (ref[worst] | pred[worst]).any()


def test_the_cursor_reads_hu_voxel_and_patient_position(page, case):
    hu, ref, _ = case
    box = page.locator(".lsv-stage").bounding_box()
    for fx, fy in [(0.5, 0.5), (0.3, 0.45), (0.62, 0.7)]:
        page.mouse.move(box["x"] + fx * box["width"], box["y"] + fy * box["height"])
        now(page, "slice")
        text = page.locator(".lsv-readout").inner_text().replace("−", "-")
        value, *index = (int(n) for n in re.search(r"≈ (-?\d+) HU\D+(\d+)\D+(\d+)\D+(\d+)", text).groups())
        assert abs(value - hu[tuple(index)]) <= 14
        x, y, z = AFFINE[:3, :3] @ index + AFFINE[:3, 3]
        said = re.findall(r"([LRPASI]) (\d+\.\d)", text)
        assert said == [
            ("RL"[int(x >= 0)], f"{abs(x):.1f}"),
            ("AP"[int(y >= 0)], f"{abs(y):.1f}"),
            ("IS"[int(z >= 0)], f"{abs(z):.1f}"),
        ]
        assert ("in reference" in text) == ref[tuple(index)]


def test_zoom_keeps_the_voxel_under_the_cursor(page):
    box = page.locator(".lsv-stage").bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.6 * box["height"])
    now(page, "slice")
    voxel, before = page.locator(".lsv-readout span").nth(1).inner_text(), pixels(page)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -200)
    page.keyboard.up("Control")
    now(page, "slice")
    assert pixels(page) != before
    assert page.locator(".lsv-readout span").nth(1).inner_text() == voxel
    page.keyboard.press("0")
    now(page, "slice")
    assert pixels(page) == before


def lung_colour_box(page):
    "Width and height on screen of what is bright in the lung window."
    bright = image(page)[40:-40, 40:-40, 0] > 200
    rows, cols = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    return cols[-1] - cols[0], rows[-1] - rows[0]


def test_a_ball_is_round_in_every_plane(show, case):
    hu = np.where(ball((15, 28, 40), 33), 40, -1000).astype(np.int16)
    page = show(Viewer(hu, affine=AFFINE).to_html())
    page.focus(".lsv-stage")
    for key in "acs":
        page.keyboard.press(key)
        now(page, "plane")
        width, height = lung_colour_box(page)
        assert width / height == pytest.approx(1, abs=0.06), key


def test_a_volume_stored_the_other_way_round_looks_the_same(show, case):
    hu = case[0].copy()
    hu[:, 20:24, 20:30] = 400  # something that is not symmetric
    last = AFFINE @ [29, 55, 79, 1]
    flipped = AFFINE * [-1, -1, -1, 1]
    flipped[:, 3] = last
    pictures = []
    for array, affine, point in [
        (hu, AFFINE, [15, 28, 40]),
        (hu[::-1, ::-1, ::-1], flipped, [14, 27, 39]),
    ]:
        viewer = Viewer(array, affine=affine, slice=point[0])
        viewer.point = point
        page = show(viewer.to_html())
        page.focus(".lsv-stage")
        pictures.append([])
        for key, plane in zip("csa", ("coronal", "sagittal", "axial"), strict=True):
            page.keyboard.press(key)
            assert now(page, "plane") == plane
            pictures[-1].append(image(page)[60:-60, 60:-60, :3])
    for one, other in zip(*pictures, strict=True):
        assert np.abs(one - other).mean() < 0.5


def test_two_viewers_on_one_page_do_not_know_each_other(show, case):
    hu, ref, pred = case
    html = Viewer(hu, ref, pred, affine=AFFINE).to_html()
    page = show(html + html + Viewer(hu, affine=AFFINE, title="Third").to_html(), ready=3)
    page.locator(".lsv-stage").nth(1).focus()
    page.keyboard.press("c")
    page.wait_for_selector(".lsv[data-plane='coronal']")
    planes = page.locator(".lsv").evaluate_all("all => all.map(v => v.dataset.plane)")
    assert planes == ["axial", "coronal", "axial"]


def test_without_javascript_there_is_a_picture(show, case):
    hu, ref, pred = case
    html = Viewer(hu, ref, pred, affine=AFFINE, title="Balls").to_html(page=True)
    page = show(html, ready=0, java_script_enabled=False)
    poster = page.locator(".lsv-poster img")
    assert poster.is_visible() and poster.bounding_box()["width"] > 50
    assert "Balls: axial slice" in poster.get_attribute("alt")
    assert "With JavaScript" in page.locator(".lsv-poster").inner_text()


def test_what_goes_wrong_is_said_on_the_page(show, case):
    state = json.loads(re.search(r"json\">(.*?)</script>", Viewer(case[0]).to_html(), re.S)[1])
    state["_volume"]["data"] = base64.b64encode(b"no gzip at all").decode()
    page = show(_static_html(state, b"", "nothing", page=False), ready=0, allow_errors=True)
    page.wait_for_selector("[role=alert]")
    assert "The viewer stopped" in page.locator("[role=alert]").inner_text()


def test_unknown_spacing_is_said(show, case):
    page = show(Viewer(case[0]).to_html())
    assert "spacing unknown" in spoken(page)
    page.hover(".lsv-stage")
    now(page, "slice")
    assert "mm" not in page.locator(".lsv-readout").inner_text()


def test_ink_follows_the_page(show, case):
    html = Viewer(case[0], case[1], affine=AFFINE).to_html(page=True)
    colours = [
        show(html, color_scheme=scheme).locator(".lsv").evaluate("v => getComputedStyle(v).color")
        for scheme in ("light", "dark")
    ]
    assert colours[0] != colours[1]


@pytest.mark.parametrize("width", [320, 375, 768])
def test_it_fits_a_narrow_screen(show, case, width):
    page = show(Viewer(*case, affine=AFFINE).to_html(page=True), viewport={"width": width, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for button in page.locator(".lsv button:visible").all():
        assert button.evaluate("b => b.scrollWidth <= b.clientWidth"), button.inner_text()


def test_every_control_has_a_name_and_can_be_reached_by_keyboard(page):
    nameless = page.locator(".lsv input, .lsv button, .lsv-stage").evaluate_all(
        "all => all.filter(e => !(e.ariaLabel || e.textContent || e.labels?.[0]?.textContent)).length"
    )
    assert nameless == 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "lsv-play"
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.className") == "lsv-stage"
    assert page.locator(".lsv-stage").evaluate("e => getComputedStyle(e).boxShadow") != "none"


def test_playing_moves_and_stops(page):
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('.lsv').dataset.slice !== '15'")
    page.keyboard.press("Space")
    stopped = now(page, "slice")
    page.wait_for_timeout(250)
    assert now(page, "slice") == stopped


# ---- live -------------------------------------------------------------------------------------------------

CELLS = [
    "import numpy as np\nfrom lungseg.viewer import Viewer\n"
    "hu = np.random.default_rng(0).normal(-500, 300, (20, 40, 50)).astype(np.int16)\n"
    "w = Viewer(hu, hu > -400, title='Live')\nw",
    "w.slice = 3",
    "print('now at', w.slice, w.plane)",
    "import ipywidgets\nipywidgets.VBox([Viewer(hu, bits=8)])",
    "w.ref = None",
]


@contextmanager
def jupyter_lab(folder):
    "JupyterLab on a free port of this machine, with its settings in `folder`; gone at the end."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    own = {f"JUPYTER_{k}_DIR": str(folder / k) for k in ("CONFIG", "RUNTIME")}
    own |= {f"JUPYTERLAB_{k}_DIR": str(folder / k) for k in ("SETTINGS", "WORKSPACES")}
    env = (
        {k: v for k, v in os.environ.items() if k != "LUNGSEG_STATIC"}
        | own
        | {"IPYTHONDIR": str(folder / "ipython")}
    )
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--allow-root",
    ]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    with open(folder / "lab.log", "wb") as log:
        lab = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=2).close()
                break
            except OSError:
                if lab.poll() is not None:
                    pytest.fail(f"JupyterLab did not start: {(folder / 'lab.log').read_text()[-500:]}")
                time.sleep(0.25)
        yield port
    finally:
        lab.terminate()
        try:
            lab.wait(20)
        except subprocess.TimeoutExpired:
            lab.kill()


@contextmanager
def live_notebook(browser, folder, sources):
    "A notebook of code cells, opened in JupyterLab; the page it is on."
    cells = [
        {
            "cell_type": "code",
            "id": f"c{i}",
            "source": s,
            "metadata": {},
            "outputs": [],
            "execution_count": None,
        }
        for i, s in enumerate(sources)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (folder / "live.ipynb").write_text(json.dumps(notebook))
    with jupyter_lab(folder) as port:
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}/lab/tree/live.ipynb?reset")
        yield page
        context.close()


def test_it_lives_in_jupyterlab(browser, tmp_path):
    "Python moves the picture and the picture Python; it works inside other widgets; masks can change."
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    with live_notebook(browser, tmp_path, CELLS) as page:
        code = page.locator(".jp-Notebook .jp-CodeCell")
        code.first.locator(".jp-InputArea-editor").click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_selector(".lsv[data-ready]")
        before = pixels(page)
        code.nth(1).locator(".jp-InputArea-editor").click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_selector(".lsv[data-slice='3']")
        assert pixels(page) != before, "Python moved the picture"

        page.locator(".lsv-stage").click()
        before = pixels(page)
        for key in ("c", "ArrowUp", "a", "ArrowUp", "ArrowUp"):
            page.keyboard.press(key)
        page.wait_for_selector(".lsv[data-slice='5'][data-plane='axial']")
        assert pixels(page) != before
        assert code.count() == len(CELLS), "`a` and `c` are the viewer's here, not JupyterLab's"
        code.nth(2).locator(".jp-InputArea-editor").click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_selector(".jp-OutputArea-output:has-text('now at 5 axial')")

        code.nth(3).locator(".jp-InputArea-editor").click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_function("document.querySelectorAll('.lsv[data-ready]').length === 2")
        before = pixels(page)
        code.nth(4).locator(".jp-InputArea-editor").click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_function("b => document.querySelector('.lsv-picture').toDataURL() !== b", arg=before)
