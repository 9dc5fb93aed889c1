"""Several processes and one Ctrl-C: at whatever moment it comes, all of them end and nothing is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lungseg import core
from lungseg.core import pool
from lungseg.files import write_nifti
from lungseg.phantom import draw_phantom
from lungseg.volume import Volume

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    "A hundred times one chest: enough work that no moment below comes too late."
    folder = tmp_path_factory.mktemp("many") / "cohort"
    phantom = draw_phantom(seed=5, size=192, slices=40)
    first = write_nifti(Volume(phantom.hu, phantom.affine), folder / "p0.nii.gz")
    for i in range(1, 100):
        (folder / f"p{i}.nii.gz").hardlink_to(first)
    return folder


def listening() -> None:
    "A shell may have started the tests deaf to Ctrl-C, as it does with jobs in the background."
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(*words: object) -> subprocess.Popen:
    "A command in a process group of its own, as a terminal starts it."
    command = [sys.executable, "-c", "from lungseg.cli import main; main()", *map(str, words)]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=listening
    )


def members(group: int, word: str = "") -> list[int]:
    "The processes of a group that are not over, by a word of their command line."
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its = (folder / "stat").read_text().rpartition(") ")[2].split()[:3]
            said = (folder / "cmdline").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if int(its) == group and state not in "ZX" and word in said:
            found.append(int(folder.name))
    return found


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@linux
@pytest.mark.parametrize("everyone", [True, False], ids=["to all", "to one"])
@pytest.mark.parametrize("seconds", [0, 0.02, 0.3, 0.8, 1.4, 2, 3])
def test_ctrl_c_at_any_moment_ends_all_processes_with_one_line(cohort, tmp_path, seconds, everyone):
    out = tmp_path / "out"
    process = start("convert", cohort, out)
    try:
        wait_for(lambda: members(process.pid, "spawn_main") or process.poll() is not None)
        time.sleep(seconds)
        (os.killpg if everyone else os.kill)(process.pid, signal.SIGINT)
        if everyone and seconds < 1:  # while the workers start, which takes longer than this
            time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=20)[1]
        assert process.returncode == 130, said
        assert "Traceback" not in said and "Error" not in said, said
        assert said.count("nothing is half written") == 1
        wait_for(lambda: not members(process.pid), 5)
        files = [p for p in out.rglob("*") if p.is_file()]
        assert all(f.name == "ct.nii.gz" for f in files) and len(files) < 100
    finally:
        for pid in members(process.pid):
            os.kill(pid, signal.SIGKILL)


def nap(folder: Path) -> None:
    try:
        (folder / "half").write_text("half")
        time.sleep(60)
    finally:
        (folder / "half").unlink()


@pytest.mark.parametrize("light", [True, False])
def test_work_in_hand_is_broken_off_and_cleans_up(tmp_path, light):
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), pool(1, light=light) as executor:
        pieces = [executor.submit(nap, tmp_path) for _ in range(9)]
        wait_for((tmp_path / "half").exists)
        raise KeyboardInterrupt
    assert time.monotonic() - begin < 50 and list(tmp_path.iterdir()) == []
    assert all(piece.done() for piece in pieces)


def deaf_nap(file: Path) -> None:
    "As in a decoder that never comes back to Python."
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    file.touch()
    time.sleep(60)


def test_a_worker_that_does_not_hear_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(core, "_PATIENCE", 0.5)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), pool(1, light=True) as executor:
        executor.submit(deaf_nap, tmp_path / "begun")
        wait_for((tmp_path / "begun").exists)
        raise KeyboardInterrupt
    assert time.monotonic() - begin < 30


def test_an_error_in_one_piece_is_the_error_of_all():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), pool(2) as executor:
        assert list(executor.map(divmod, [7, 1, 9], [2, 0, 4]))
    assert signal.getsignal(signal.SIGINT) is before
