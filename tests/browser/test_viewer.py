"""The viewer in a real browser: what it draws, what it answers to and what it leaves alone."""

import io
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from matplotlib.image import imread

from dcamt.data.volume import write_volume
from dcamt.evaluation.evaluate import evaluate
from dcamt.files import write_json
from dcamt.reporting.report import write_report
from dcamt.runs.serve import make_server
from dcamt.runs.view import show

pytestmark = pytest.mark.browser

SHAPE = (48, 40, 32)
START, SHOWN = (8, 6), (36, 28)
"""The surroundings of the boxes that the report holds: 8 mm around both."""
HOSTILE = "x<img src=x onerror=alert(1)>'&quot"
CLASS = "</script><script>alert(2)</script>"
ORANGE, BLUE = np.array([255, 159, 28]) / 255, np.array([86, 180, 233]) / 255


def label(shift: int = 0) -> np.ndarray:
    """A box in the middle, 16 x 12 x 10 voxels, moved to the right of the array by ``shift``."""
    array = np.zeros(SHAPE, np.uint8)
    array[16 + shift : 32 + shift, 14:26, 11:21] = 1
    return array


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two cases: in one the prediction is the label, in the other 4 voxels off."""
    root = tmp_path_factory.mktemp("browser")
    data, run = root / "data", root / "run"
    ramp = np.broadcast_to(np.arange(SHAPE[0], dtype=np.float32)[:, None, None], SHAPE)
    for case, shift in (("good", 0), (HOSTILE, 4)):
        write_volume(data / "images" / f"{case}.nii.gz", 10 * ramp, np.eye(4))
        write_volume(data / "labels" / f"{case}.nii.gz", label(), np.eye(4))
        write_volume(run / "validation" / f"{case}.nii.gz", label(shift), np.eye(4))
    about = {"name": "Data", "channel_names": {"0": "MR"}, "labels": {"background": 0, CLASS: 1}}
    (data / "dataset.json").write_text(json.dumps(about))
    config = {"dataset": str(data), "seed": 1, "method": {"name": "vnet"},
              "plan": {"classes": ["background", CLASS], "ignore": None}}  # fmt: skip
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    split = {"labeled": [], "unlabeled": [], "val": ["good", HOSTILE], "test": []}
    (run / "split.json").write_text(json.dumps(split))
    (run / "versions.json").write_text("{}")
    (run / "data.json").write_text(json.dumps({"name": CLASS, "licence": CLASS}))
    rows = [f"{i},{i},0.01,{1 / i:.4f}," for i in range(1, 60)]
    head = "iteration,seconds,learning_rate,supervised,val_dice"
    (run / "log.csv").write_text("\n".join([head, *rows]) + "\n")
    write_json(evaluate(run / "validation", data), run / "validation.json")
    write_report(run)
    return run


def address(run: Path) -> str:
    return (run / "report.html").as_uri()


def canvas_picture(page: Any) -> np.ndarray:
    """What the canvas of the slices shows, (rows, columns, RGB) from 0 to 1."""
    png = page.locator(".panel canvas").first.screenshot()
    return imread(io.BytesIO(png))[..., :3]


def axial_place(picture: np.ndarray, x: float, y: float) -> tuple[int, int]:
    """Row and column where a voxel lies if the axial slice fills the canvas.

    Radiological: x runs to the left, y upwards. The slice is centred at one scale.
    """
    rows, columns = picture.shape[:2]
    scale = min(columns / SHOWN[0], rows / SHOWN[1])
    left, top = (columns - scale * SHOWN[0]) / 2, (rows - scale * SHOWN[1]) / 2
    column = left + scale * (START[0] + SHOWN[0] - x - 0.5)
    return int(top + scale * (START[1] + SHOWN[1] - y - 0.5)), int(column)


def grey(x: float) -> float:
    """How bright the scan is there."""
    return (x - START[0]) / (SHOWN[0] - 1)


def only(page: Any, *layers: str) -> None:
    """Tick these overlays and no others, at full opacity."""
    for name in ("prediction", "reference", "difference"):
        row = page.locator(f"[data-layer={name}]")
        row.locator("input[type=checkbox]").set_checked(name in layers)
        row.locator("input[type=range]").fill("100")


def settle(page: Any) -> None:
    """Wait until what was asked for is drawn."""
    page.evaluate("() => new Promise((go) => requestAnimationFrame(() => setTimeout(go, 300)))")


def test_the_overlay_lies_on_the_scan(run, browser, watch):
    watched = watch(browser)
    page = watched.open(address(run))
    assert page.locator("#viewer").get_attribute("data-shown") == HOSTILE  # the worst comes first
    page.get_by_role("button", name="Axial").click()
    only(page, "prediction")
    settle(page)
    picture = canvas_picture(page)
    found = label(4)[:, :, 16]
    for x in range(START[0] + 2, START[0] + SHOWN[0] - 2, 3):
        for y in range(START[1] + 2, START[1] + SHOWN[1] - 2, 3):
            around = found[x - 2 : x + 3, y - 2 : y + 3]
            row, column = axial_place(picture, x, y)
            pixel = picture[row, column]
            if around.min() != around.max() or pixel[2] > 0.6 > pixel[0]:
                continue  # neighbouring colours mix at the border; the cross-hair is blue
            row, column = axial_place(picture, x, y)
            pixel = picture[row, column]
            if found[x, y]:
                assert np.abs(pixel - ORANGE).max() < 0.08, (x, y, pixel)
            elif pixel[2] < pixel[0] + 0.1:  # not the cross-hair, which is blue
                assert np.abs(pixel - grey(x)).max() < 0.1, (x, y, pixel)
    assert not watched.trouble


def test_overlays_can_be_switched_and_faded(run, browser, watch):
    watched = watch(browser)
    page = watched.open(address(run))
    page.get_by_role("button", name="Axial").click()
    inside, gone, new = (28, 17), (17, 17), (34, 17)  # in both, label alone, prediction alone
    seen = {}
    for layers in (("reference",), ("difference",), ()):
        only(page, *layers)
        settle(page)
        picture = canvas_picture(page)
        seen[layers] = [picture[axial_place(picture, *at)] for at in (inside, gone, new)]
    reference, difference, bare = seen.values()
    assert np.abs(reference[0] - BLUE).max() < 0.08 and np.abs(reference[1] - BLUE).max() < 0.08
    assert np.ptp(reference[2]) < 0.05  # grey
    assert np.ptp(difference[0]) < 0.05
    assert difference[1][0] > difference[1][1] + 0.3  # missed: red
    assert difference[2][0] > 0.8 and difference[2][1] > 0.8 > difference[2][2]  # too much: yellow
    assert all(np.ptp(pixel) < 0.05 for pixel in bare)

    only(page, "reference")
    page.locator("[data-layer=reference] input[type=range]").fill("50")
    settle(page)
    picture = canvas_picture(page)
    pixel = picture[axial_place(picture, *inside)]
    assert np.abs(pixel - (BLUE + grey(inside[0])) / 2).max() < 0.08
    page.locator(".panel canvas").first.focus()
    page.keyboard.press("o")
    settle(page)
    assert np.ptp(canvas_picture(page)[axial_place(picture, *inside)]) < 0.05
    assert not watched.trouble


def test_keys_and_the_wheel_go_through_the_slices(run, browser, watch):
    page = watch(browser).open(address(run))

    def place() -> list[int]:
        text = page.locator("#readout span").first.inner_text()
        return [int(part.split()[-1].split("/")[0]) for part in text.split(" · ")]

    page.get_by_role("button", name="Axial").click()
    page.locator(".panel canvas").first.focus()
    start = place()
    for keys, moved in (
        (["PageUp"] * 3, [0, 0, 3]), (["PageDown"], [0, 0, 2]), (["ArrowLeft"] * 2, [2, 0, 2]),
        (["ArrowUp"], [2, 1, 2]), (["r"], [0, 0, 0]),
    ):  # fmt: skip
        for key in keys:
            page.keyboard.press(key)
        assert np.subtract(place(), start).tolist() == moved
    settle(page)
    before = canvas_picture(page)
    for _ in range(8):  # out of the box
        page.keyboard.press("PageUp")
    settle(page)
    assert np.abs(canvas_picture(page) - before).mean() > 0.01
    assert "prediction: background" in page.locator("#readout").inner_text()
    box = page.locator(".panel canvas").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    scrolled = place()
    page.mouse.wheel(0, 100)
    settle(page)
    assert place()[2] != scrolled[2]


def test_hostile_names_do_nothing(run, browser, watch):
    watched = watch(browser)
    page = watched.open(address(run))
    assert page.locator("h1").inner_text() == CLASS
    assert HOSTILE in page.locator("#case").inner_text()
    assert page.locator("#viewer img, h1 *").count() == 0
    row = page.locator("#cases button", has_text=HOSTILE)
    assert row.inner_text() == HOSTILE
    only(page, "prediction")
    assert f"prediction: {CLASS}" in page.locator("#readout").inner_text()
    assert not watched.trouble
    assert watched.requests == [page.url]  # and no request left the page


def test_a_click_on_a_row_opens_the_case(run, browser, watch):
    page = watch(browser).open(address(run))
    page.locator("#cases button", has_text="good").click()
    page.wait_for_selector("#viewer[data-shown=good]")
    assert page.locator("#case").input_value() == "1"
    assert "Dice 100.0 %" in page.locator("#facts").inner_text()
    page.keyboard.press("p")  # the slices have the focus now
    page.wait_for_selector("#viewer:not([data-shown=good]):not([data-shown=''])")


def test_curves_tell_the_value_under_the_pointer(run, browser, watch):
    page = watch(browser).open(address(run))
    chart = page.locator(".chart", has_text="supervised")
    box = chart.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * (40 / 300), box["y"] + box["height"] / 2)
    assert chart.locator(".value").inner_text() == "1 at 1"
    assert page.locator(".still-curves").is_hidden()


def test_without_webgl_the_pictures_are_shown(run, plain_browser, watch):
    watched = watch(plain_browser)
    watched.page.goto(address(run))
    watched.page.wait_for_selector("body[data-viewer]")
    assert watched.page.locator("#viewer").is_hidden()
    pictures = watched.page.locator(".still figure img")
    assert pictures.count() == 2 and pictures.first.is_visible()


def test_without_javascript_the_pictures_are_shown(run, browser, watch):
    watched = watch(browser, java_script_enabled=False)
    watched.page.goto(address(run))
    assert watched.page.locator("#viewer").is_hidden()
    assert watched.page.locator(".still figure img").first.is_visible()
    assert watched.page.locator(".still-curves img").is_visible()


def test_on_paper_there_are_pictures(run, browser, watch):
    page = watch(browser).open(address(run))
    assert page.locator(".still figure img").first.is_hidden()
    page.emulate_media(media="print")
    assert page.locator("#viewer").is_hidden() and page.locator("#charts").is_hidden()
    assert page.locator(".still figure img").first.is_visible()
    assert page.locator(".still-curves img").is_visible()


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(run, browser, watch, width, scheme):
    size = {"width": width, "height": 900}
    page = watch(browser, viewport=size, color_scheme=scheme).open(address(run))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert (sum(map(int, ink[4:-1].split(","))) > 384) == (scheme == "dark"), (ink, paper)


def served(paths: list[Path]) -> Any:
    shown = show(paths)
    server = make_server(shown.page, shown.cases, shown.curves)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


def test_a_run_is_served_with_its_cases_on_demand(run, browser, watch):
    with served([run]) as server:
        watched = watch(browser)
        page = watched.open(server.address)
        assert page.locator("#case option").count() == 2
        page.locator("#next").click()
        page.wait_for_selector("#viewer[data-shown=good]")
        assert watched.requests == [server.address, f"{server.address}case/0",
                                    f"{server.address}case/1"]  # fmt: skip
        assert not watched.trouble
        server.shutdown()


def test_two_runs_stand_side_by_side_with_linked_cross_hairs(run, browser, watch, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    with served([run, other]) as server:
        watched = watch(browser)
        page = watched.open(server.address)
        assert page.locator(".panel h4").all_inner_texts() == ["run", "other"]
        page.get_by_role("button", name="Axial").click()
        first, second = page.locator(".panel").all()
        first.locator("canvas").first.focus()
        for _ in range(8):
            page.keyboard.press("PageUp")
        settle(page)
        pictures = [
            imread(io.BytesIO(panel.locator("canvas").first.screenshot()))[5:-5, 5:-5, :3]
            for panel in (first, second)
        ]
        assert np.abs(pictures[0] - pictures[1]).mean() < 0.01
        assert not watched.trouble
        server.shutdown()


def test_a_scan_of_other_axes_is_shown_with_its_segmentation(browser, watch, tmp_path):
    affine = nib.orientations.inv_ornt_aff(
        nib.orientations.axcodes2ornt(("P", "I", "R")), (SHAPE[1], SHAPE[2], SHAPE[0])
    )
    turned = np.transpose(label(), (1, 2, 0))[::-1, ::-1]
    write_volume(tmp_path / "scan.nrrd", turned * 100.0, affine)
    write_volume(tmp_path / "segmentation.mha", turned, affine)
    with served([tmp_path / "scan.nrrd", tmp_path / "segmentation.mha"]) as server:
        watched = watch(browser)
        page = watched.open(server.address)
        assert "prediction: class 1" in page.locator("#readout").inner_text()
        assert not watched.trouble
        server.shutdown()
