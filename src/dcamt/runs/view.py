"""``dcamt view``: what is shown of a run, of several, or of scans with segmentations."""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dcamt.data.dataset import Case
from dcamt.data.folder import CHANNEL_NUMBER, volumes_in
from dcamt.data.scans import find_scans
from dcamt.data.volume import aligned, read_image, read_label
from dcamt.errors import InputError, first_of
from dcamt.escape import from_csv_cell
from dcamt.files import read_json, read_text
from dcamt.records.finished_run import FinishedRun, read_run
from dcamt.records.run_folder import CONFIG
from dcamt.records.scores import Scores, read_scores
from dcamt.reporting.cases import has_uncertainty, read_uncertainty
from dcamt.reporting.curves import curve_data
from dcamt.reporting.page import render_page
from dcamt.reporting.report import read_data, render_report
from dcamt.reporting.viewer import LAYERS, read_layers, run_cases, scored_cases, view_data
from dcamt.reporting.volumes import Layers, ShownCase
from dcamt.runs.serve import serve

SIDE_BY_SIDE = 4
"""Runs at most, as a browser draws on a limited number of canvases."""
RESULTS = "results.json"


@dataclass(frozen=True)
class Shown:
    """cases: in their order. page: makes the HTML anew. curves: those of a training, anew."""

    cases: Sequence[ShownCase]
    page: Callable[[], str]
    curves: Callable[[], Mapping[str, Any]] | None = None


def view(paths: Sequence[Path], ranking: Path | None, browser: bool, port: int = 0) -> None:
    """Serve a page on this machine alone until Ctrl-C; see `dcamt.view`."""
    shown = show(paths, ranking)
    serve(shown.page, shown.cases, shown.curves, browser, port)


def show(paths: Sequence[Path], ranking: Path | None = None) -> Shown:
    """What ``paths`` are: one or more runs, a comparison, or scans and segmentations of them."""
    if not paths:
        raise InputError("nothing to view is named; give a run, or a scan")
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; give a run, or a scan")
    if all((path / CONFIG).is_file() for path in paths) and ranking is None:
        if len(paths) == 1 and not (paths[0] / RESULTS).is_file():
            return _show_run(paths[0])
        if len(paths) > 1:
            return _show_runs(paths, _titles(paths), "validation")
    if len(paths) == 1 and (paths[0] / RESULTS).is_file():
        return _show_comparison(paths[0])
    if len(paths) > 2:
        raise InputError(
            f"{paths[2]}: give one or more run folders, a comparison, or a scan and a segmentation"
        )
    return _show_scans(paths[0], paths[1] if len(paths) > 1 else None, ranking)


# ----------------------------------------------------------------------------------------- runs


def _show_run(folder: Path) -> Shown:
    cases: list[ShownCase] = []

    def page() -> str:
        now = read_run(folder)
        dataset, note = read_data(now)
        cases[:] = run_cases(now, dataset) if dataset else []  # a training may have ended
        return render_report(now, dataset, note, served=True)

    def curves() -> Mapping[str, Any]:
        now = read_run(folder)
        return {"curves": curve_data(now.log), "running": now.scores is None}

    read_run(folder)  # refuses what is none before a page is served
    return Shown(cases, page, curves)


def _titles(folders: Sequence[Path]) -> list[str]:
    """Names of ``folders``; where two are alike, with what the folders lie in."""
    places = [folder.resolve() for folder in folders]
    most = max(len(place.parts) for place in places)
    titles = (["/".join(place.parts[-n:]) for place in places] for n in range(1, most + 1))
    return next(names for names in titles if len({*names}) == len({*places}))


def _show_comparison(folder: Path) -> Shown:
    """The first seed of each row, at most SIDE_BY_SIDE: fewest labels first, as in the table."""
    try:
        results = read_json(folder / RESULTS)
        rows = results["rows"][:SIDE_BY_SIDE]
        runs = [folder / row["runs"][0]["folder"] for row in rows]
        titles = [f"{row['name']}, {row['labels']} labels" for row in rows]
        scored = {"test": "test", "validation": "validation"}[results["cases"]]
        inside = all(run.resolve().is_relative_to(folder.resolve()) for run in runs)
    except (KeyError, TypeError, IndexError):
        inside = False
    if not inside:
        raise InputError(f"{folder / RESULTS}: is not of `dcamt compare`; make it anew")
    return _show_runs(runs, titles, scored)


def _show_runs(folders: Sequence[Path], titles: Sequence[str], scored: str) -> Shown:
    """The cases that all of the runs segmented, side by side; the first run's worst first."""
    if len(folders) > SIDE_BY_SIDE:
        raise InputError(f"{folders[SIDE_BY_SIDE]}: at most {SIDE_BY_SIDE} runs fit side by side")
    runs = [read_run(folder) for folder in folders]
    dataset, note = read_data(runs[0])
    if dataset is None:
        raise InputError(f"{folders[0]}: its data set cannot be read: {note}")
    scores = [_scores(run, scored) for run in runs]
    tables = [{name: facts for name, facts, _ in scored_cases(table)} for table in scores]
    places = [folder / scored for folder in folders]
    cases = []
    for name, _, flagged in scored_cases(scores[0]):
        if all(name in table for table in tables):
            dice = {t: table[name].get("Dice", "") for t, table in zip(titles, tables, strict=True)}
            read = partial(read_layers, dataset, name, places)
            cases.append(ShownCase(name, read, dice, flagged))
    if not cases:
        raise InputError(f"{folders[1]}: has no {scored} case in common with {folders[0]}")
    plan = runs[0].config.get("plan") or {}
    return _page(
        dataset.name, "Dice of each case, cross-hairs linked", cases, plan.get("classes") or (),
        ("prediction", "reference", "difference"), any(map(has_uncertainty, places)), titles,
    )  # fmt: skip


def _scores(run: FinishedRun, scored: str) -> Scores:
    path = run.folder / f"{scored}.json"
    if not path.is_file():
        raise InputError(f"{run.folder}: has no scores yet ({scored}.json); wait for its end")
    return read_scores(path)


# ------------------------------------------------------------------------ scans and segmentations


def _show_scans(path: Path, segmentations: Path | None, ranking: Path | None) -> Shown:
    scans = {case.name: case for case in find_scans(path, 1)}
    found = _segmentations(path, segmentations, scans)
    facts, flagged, classes = _summary(segmentations)
    order = _ranking(ranking)
    names = (
        {*found} if segmentations is not None else {_ranked_name(s, order, scans) for s in scans}
    )
    if order and not any(name in order for name in names):
        raise InputError(f"{ranking}: ranks none of these cases; give the ranking of these scans")
    cases = []
    last = (len(order), dict[str, str]())

    def place(name: str) -> tuple[int, bool, str]:
        return order.get(name, last)[0], name not in flagged, name

    for name in sorted(names, key=place):
        told = {**order.get(name, last)[1], **facts.get(name, {})}
        scan = _scan_of(name, scans)
        read = partial(_read_scan, scan.images, found.get(name), name)
        cases.append(ShownCase(name, read, told, name in flagged))
    uncertain = segmentations is not None and has_uncertainty(segmentations)
    layers = () if segmentations is None else ("prediction",)
    subtitle = path.resolve().name + ("" if segmentations is None else f" · {segmentations.name}")
    return _page(path.resolve().name, subtitle, cases, classes, layers, uncertain)


def _segmentations(scan: Path, path: Path | None, scans: Mapping[str, Case]) -> dict[str, Path]:
    """The file of each case's segmentation."""
    if path is None:
        return {}
    if path.is_file():
        if len(scans) > 1:
            raise InputError(f"{path}: is one segmentation, but {scan} holds {len(scans)} scans")
        return {next(iter(scans)): path}
    problems: list[str] = []
    files = volumes_in(path, problems, [])
    if problems:
        raise first_of(problems)
    found = {name: file for name, file in files.items() if _known(name, scans)}
    if not found:
        raise InputError(
            f"{path}: holds no segmentation that bears the name of a scan in {scan}; give the "
            "folder that `dcamt predict` wrote for these scans"
        )
    return found


def _ranked_name(scan: str, order: Mapping[str, Any], scans: Mapping[str, Case]) -> str:
    """The name of ``scan``; of a channel that of its case, where the ranking has it."""
    channel = CHANNEL_NUMBER.fullmatch(scan)
    ranked = channel is not None and channel["case"] in order and _known(channel["case"], scans)
    return channel["case"] if channel is not None and ranked else scan


def _known(name: str, scans: Mapping[str, Case]) -> bool:
    return name in scans or f"{name}_0000" in scans


def _scan_of(name: str, scans: Mapping[str, Case]) -> Case:
    """The scan of that name; of several channels the first."""
    return scans[name] if name in scans else scans[f"{name}_0000"]


def _read_scan(images: Sequence[Path], segmentation: Path | None, name: str) -> Layers:
    with ThreadPoolExecutor() as pool:  # most of a large scan's time is decompression
        reading = pool.submit(read_image, images[:1], ordered=False)
        label = None if segmentation is None else read_label(segmentation, ordered=False)
        image = reading.result()
    if segmentation is None or label is None:
        return Layers(image.array[0], image.affine, None, [], [])
    label = aligned(image, label, images[0], segmentation, "segmentation")
    doubt = read_uncertainty(image, images[0], segmentation.parent, name)
    return Layers(image.array[0], image.affine, None, [label.array], [doubt])


def _summary(folder: Path | None) -> tuple[dict[str, dict[str, str]], set[str], list[str]]:
    """What summary.csv tells of each case, the cases that it flags, and the names of classes."""
    facts: dict[str, dict[str, str]] = defaultdict(dict)
    flagged: set[str] = set()
    classes = ["background"]
    if folder is None or not (folder / "summary.csv").is_file():
        return facts, flagged, classes
    for row in _rows(folder / "summary.csv", "case"):
        case = row["case"]
        structure = row.get("class_name") or "structure"
        if structure not in classes:
            classes.append(structure)
        if row.get("volume_ml"):
            facts[case][f"{structure}, ml"] = row["volume_ml"]
        if row.get("confidence"):
            facts[case][f"{structure}, confidence"] = row["confidence"]
        if row.get("flag"):
            facts[case]["Flag"] = row["flag"]
            flagged.add(case)
    return facts, flagged, classes


def _ranking(path: Path | None) -> dict[str, tuple[int, dict[str, str]]]:
    """Place and numbers of each case of a ranking.csv."""
    if path is None:
        return {}
    found = {}
    for place, row in enumerate(_rows(path, "case")):
        told = {key.capitalize(): value for key, value in row.items() if key != "case" and value}
        found[row["case"]] = (place, told)
    return found


def _rows(path: Path, needed: str) -> list[dict[str, str]]:
    """The rows of a table, with all names as they were before they were made safe."""
    try:
        table = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except csv.Error:
        table = []
    if not table or needed not in table[0]:
        raise InputError(f"{path}: is no table with a column '{needed}'; make it anew")
    rows = []
    for row in table:
        named = {key: value or "" for key, value in row.items() if isinstance(key, str)}
        rows.append({key: from_csv_cell(value) for key, value in named.items()})
    return rows


def _page(
    title: str,
    subtitle: str,
    cases: Sequence[ShownCase],
    classes: Sequence[str],
    layers: Sequence[str],
    uncertain: bool,
    panels: Sequence[str] = ("",),
) -> Shown:
    heads = list(dict.fromkeys(head for case in cases for head in case.facts))
    layers = (*layers, *(LAYERS[-1:] if uncertain else ()))
    data = view_data(cases, classes, layers, panels=panels, served=True)
    page = partial(
        render_page, "view.html", served=True, title=title, subtitle=subtitle, heads=heads,
        cases=cases, view=data, embedded={},
    )  # fmt: skip
    return Shown(cases, page)
