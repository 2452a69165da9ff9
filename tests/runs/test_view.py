"""``dcamt view``: what it shows, and what its server answers to whom."""

import csv
import http.client
import json
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from dcamt.data.volume import write_volume
from dcamt.errors import InputError
from dcamt.runs.serve import Server, make_server
from dcamt.runs.view import Shown, show

SHAPE = (30, 24, 20)
AFFINE = np.diag([-2.0, 1.0, 1.5, 1.0])


def volumes(folder: Path, names: list[str], kind: str = ".nii.gz") -> Path:
    for number, name in enumerate(names):
        array = np.zeros(SHAPE, np.float32)
        array[4 + number : 12, 5:15, 6:12] = 1
        write_volume(folder / f"{name}{kind}", array.astype(np.uint8), AFFINE)
    return folder


@contextmanager
def running(shown: Shown) -> Iterator[Server]:
    server = make_server(shown.page, shown.cases, shown.curves)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    with server:
        yield server
        server.shutdown()
        thread.join()


def ask(server: Server, path: str, host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def files_in(body: bytes) -> dict[str, Any]:
    """The NIfTI files of a case by their names."""
    line, _, rest = body.partition(b"\n")
    found = {}
    for name, length in json.loads(line).items():
        found[name] = nib.Nifti1Image.from_bytes(rest[:length])
        rest = rest[length:]
    assert not rest
    return found


def page_data(page: str) -> dict[str, Any]:
    start = page.index('id="view-data">') + len('id="view-data">')
    return json.loads(page[start : page.index("</script>", start)])


# -------------------------------------------------------------------------------------- the server


def test_without_the_secret_nothing_is_answered(tiny_run):
    with running(show([tiny_run])) as server:
        secret = server.secret
        for path in ("/", "/case/0", "//case/0", f"/{secret[:-1]}/", f"/{secret}x/", "/?" + secret,
                     "http://127.0.0.1/", "/%C3%A9"):  # fmt: skip
            assert ask(server, path)[0] == 403
        assert ask(server, f"/{secret}/")[0] == 200


def test_another_host_name_is_refused(tiny_run):
    """By which a page of another site could read it (DNS rebinding)."""
    with running(show([tiny_run])) as server:
        path = f"/{server.secret}/"
        for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1", "[::1]:80"):
            assert ask(server, path, host)[0] == 403
        assert ask(server, path, f"localhost:{server.server_port}")[0] == 200


def test_no_path_leads_to_a_file(tiny_run):
    with running(show([tiny_run])) as server:
        for path in ("config.yaml", "../config.yaml", "..%2fconfig.yaml", "validation/",
                     "case/", "case/-1", "case/1", "case/0/../../x", "case/../case/0", "case/0x",
                     "/etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "case/9999999999",
                     "\\..\\config.yaml"):  # fmt: skip
            status, body = ask(server, f"/{server.secret}/{path}")
            assert (status, body) == (404, b"there is nothing here\n"), path


def test_answers_are_kept_by_nobody_and_framed_by_nobody(tiny_run):
    with running(show([tiny_run])) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
        connection.request("GET", f"/{server.secret}/")
        headers = connection.getresponse().headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        connection.close()
        assert server.server_address[0] == "127.0.0.1"


def test_a_browser_that_leaves_early_is_no_error(tiny_run, capfd):
    with running(show([tiny_run])) as server:
        left = socket.create_connection(("127.0.0.1", server.server_port))
        left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        left.sendall(b"GET / HTTP/1.1\r\n")
        left.close()  # reset, not ended
        assert ask(server, f"/{server.secret}/")[0] == 200
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_address_and_ends_on_a_signal(tiny_run, number):
    command = [sys.executable, "-m", "dcamt", "view", str(tiny_run), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        address = it.stdout.readline()
        assert address.startswith("http://127.0.0.1:")
        time.sleep(0.2)
        it.send_signal(number)
        _, err = it.communicate(timeout=60)
    assert it.returncode == 128 + number
    assert err.splitlines()[-1].startswith(f"dcamt: stopped by {signal.Signals(number).name}")
    assert "Traceback" not in err


def test_a_port_that_is_taken_is_one_sentence(tiny_run, cli):
    with running(show([tiny_run])) as server:
        code, _, err = cli("view", tiny_run, "--no-browser", "--port", server.server_port)
    assert code == 2
    assert err.startswith(f"dcamt: --port {server.server_port}: cannot be used")


@pytest.mark.parametrize("port", [-5, 70000])
def test_a_port_that_cannot_be_is_one_sentence(tiny_run, cli, port):
    code, _, err = cli("view", tiny_run, "--no-browser", "--port", port)
    assert code == 2
    assert err.startswith(f"dcamt: --port {port}: give a number from 0 to 65535")


# ---------------------------------------------------------------------------------- what is shown


def test_every_validation_case_of_a_run_is_there(tiny_run, phantoms):
    with running(show([tiny_run])) as server:
        _, page = ask(server, f"/{server.secret}/")
        data = page_data(page.decode())
        (case,) = json.loads((phantoms / "splits.json").read_text())["val"]
        assert [one["name"] for one in data["cases"]] == [case]
        assert data["served"] and not data["running"] and data["curves"]
        assert "connect-src 'self'" in page.decode()
        status, body = ask(server, f"/{server.secret}/case/0?whole")
    assert status == 200
    files = files_in(body)
    assert set(files) == {"scan", "reference", "prediction-0", "uncertainty-0"}
    label = nib.as_closest_canonical(nib.load(phantoms / "labelsTr" / f"{case}.nii.gz"))
    assert np.array_equal(files["reference"].get_fdata(), label.get_fdata())
    assert np.allclose(files["reference"].affine, label.affine)


def test_a_training_that_runs_shows_its_curves_and_reads_them_again(tiny_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "split.json", "versions.json", "log.csv"):
        (run / name).write_bytes((tiny_run / name).read_bytes())
    with running(show([run])) as server:
        data = page_data(ask(server, f"/{server.secret}/")[1].decode())
        assert data["running"] and not data["cases"]
        before = json.loads(ask(server, f"/{server.secret}/curves")[1])
        line = (run / "log.csv").read_text().splitlines()[-1].split(",")
        with (run / "log.csv").open("a") as log:
            log.write(",".join(["77", *line[1:]]) + "\n")
        after = json.loads(ask(server, f"/{server.secret}/curves")[1])
        (run / "validation.json").write_bytes((tiny_run / "validation.json").read_bytes())
        assert not json.loads(ask(server, f"/{server.secret}/curves")[1])["running"]
        assert page_data(ask(server, f"/{server.secret}/")[1].decode())["cases"]
    assert before["running"] and after["running"]
    assert before["curves"][0]["x"] == [1, 2, 3]
    assert after["curves"][0]["x"] == [1, 2, 3, 77]


def test_names_are_shown_as_they_are_though_a_table_makes_them_safe(tmp_path):
    scans, found = (volumes(tmp_path / name, ["a"], ".nrrd") for name in ("scans", "found"))
    (found / "summary.csv").write_text(
        "case,class,class_name,volume_ml,confidence,flag\na,1,'=liver,12.5,,\n"
    )
    (case,) = show([scans, found]).cases
    assert case.facts == {"=liver, ml": "12.5"}


def test_a_folder_of_scans_meets_its_segmentations_by_name(tmp_path):
    scans = volumes(tmp_path / "scans", ["a", "b", "c"], ".nrrd")
    found = volumes(tmp_path / "found", ["b", "a"])
    table = [["case", "class", "class_name", "volume_ml", "confidence", "flag"],
             ["a", "1", "<b>liver</b>", "12.5", "0.91", ""],
             ["b", "1", "<b>liver</b>", "3.0", "0.40", "look"]]  # fmt: skip
    with (found / "summary.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
    shown = show([scans, found])
    assert [case.name for case in shown.cases] == ["b", "a"]  # flagged first
    assert shown.cases[0].facts == {
        "<b>liver</b>, ml": "3.0", "<b>liver</b>, confidence": "0.40", "Flag": "look",
    }  # fmt: skip
    page = shown.page()
    assert "<b>" not in page and "&lt;b&gt;liver" in page
    assert page_data(page)["classes"] == ["background", "<b>liver</b>"]

    ranking = tmp_path / "ranking.csv"
    ranking.write_text("rank,case,uncertainty,disagreement\n1,a,0.9,\n2,b,0.1,\n")
    assert [case.name for case in show([scans, found], ranking).cases] == ["a", "b"]
    alone = show([scans], ranking)
    assert [case.name for case in alone.cases] == ["a", "b", "c"]
    assert alone.cases[0].facts == {"Rank": "1", "Uncertainty": "0.9"}


def test_a_ranking_names_cases_of_several_channels(tmp_path):
    scans = volumes(tmp_path / "scans", ["p1_0000", "p1_0001", "p2_0000", "p2_0001"])
    ranking = tmp_path / "ranking.csv"
    ranking.write_text("rank,case,uncertainty,disagreement\n1,p2,0.9,\n2,p1,0.1,\n")
    assert [case.name for case in show([scans], ranking).cases] == ["p2", "p1"]


def test_a_ranked_case_without_its_first_channel_is_shown_by_channel(tmp_path):
    scans = volumes(tmp_path / "scans", ["p1_0001", "p2"])
    ranking = tmp_path / "ranking.csv"
    ranking.write_text("rank,case,uncertainty,disagreement\n1,p2,0.9,\n2,p1,0.1,\n")
    assert [case.name for case in show([scans], ranking).cases] == ["p2", "p1_0001"]


def test_nothing_to_view_is_one_sentence():
    with pytest.raises(InputError, match="give a run, or a scan"):
        show([])


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha", "h5"])
def test_a_map_of_uncertainty_beside_the_segmentation_is_shown(tmp_path, ending):
    scans = volumes(tmp_path / "scans", ["a"])
    found = volumes(tmp_path / "found", ["a"])
    doubt = np.linspace(0, 1, np.prod(SHAPE)).reshape(SHAPE).astype(np.float32)
    write_volume(found / "uncertainty" / f"a_entropy.{ending}", doubt, AFFINE)
    shown = show([scans, found])
    assert [name for name, *_ in page_data(shown.page())["layers"]] == ["prediction", "uncertainty"]
    with running(shown) as server:
        files = files_in(ask(server, f"/{server.secret}/case/0?whole")[1])
    turned = doubt[::-1]  # the first axis of the file runs to the left
    assert np.abs(files["uncertainty-0"].get_fdata() - turned).max() <= 0.5 / 255 + 1e-6


def test_a_scan_that_cannot_be_read_is_told_in_its_place(tmp_path):
    scans, found = volumes(tmp_path / "scans", ["a"]), volumes(tmp_path / "found", ["a"])
    (scans / "a.nii.gz").write_bytes(b"broken")
    with running(show([scans, found])) as server:
        status, body = ask(server, f"/{server.secret}/case/0")
    assert status == 422
    assert b"a.nii.gz" in body


def test_runs_side_by_side_share_their_cases(tiny_run, tmp_path):
    shown = show([tiny_run, tiny_run])
    data = page_data(shown.page())
    assert data["panels"] == [tiny_run.name] * 2
    with running(shown) as server:
        files = files_in(ask(server, f"/{server.secret}/case/0")[1])
    each = {f"{kind}-{i}" for kind in ("prediction", "uncertainty") for i in (0, 1)}
    assert set(files) == {"scan", "reference"} | each


def test_runs_of_one_name_are_told_apart(tiny_run, tmp_path):
    folders = [tmp_path / "monday" / "run", tmp_path / "friday" / "run"]
    for folder in folders:
        shutil.copytree(tiny_run, folder)
    shown = show(folders)
    assert page_data(shown.page())["panels"] == ["monday/run", "friday/run"]
    assert {"monday/run", "friday/run"} <= shown.cases[0].facts.keys()


def test_a_comparison_leads_nowhere_but_into_its_folder(tiny_run, tmp_path):
    row = {"name": "vnet", "labels": "2", "runs": [{"folder": str(tiny_run)}]}
    results = {"cases": "validation", "rows": [row, row]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match=r"results\.json: is not of `dcamt compare`"):
        show([tmp_path])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["absent"], "absent: no such file or folder"),
        (["scans", "other"], "holds no segmentation that bears the name of a scan"),
        (["scans", "found/b.nii.gz"], "is one segmentation, but"),
        (["scans", "found", "other"], "give one or more run folders, a comparison, or a scan"),
    ],
)
def test_what_does_not_fit_together_is_one_sentence(tmp_path, names, message, cli):
    volumes(tmp_path / "scans", ["a", "b"])
    volumes(tmp_path / "found", ["b"])
    volumes(tmp_path / "other", ["z"])
    code, _, err = cli("view", *[tmp_path / name for name in names], "--no-browser")
    assert code == 2
    assert message in err and "Traceback" not in err
