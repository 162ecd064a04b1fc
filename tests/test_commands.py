"""The commands of stages, each in a process group of its own."""

import subprocess
import threading
import time
from pathlib import Path

import pytest

from flows import commands
from flows.commands import Commands, Shell
from tests.waiting import lives, wait_until


def shell(folder: Path, *lines: str) -> Shell:
    return Shell(lines, tuple(["/bin/sh", "-c", line] for line in lines), folder, {"PATH": "/usr/bin:/bin"})


def run(folder: Path, *lines: str) -> tuple[commands.Ended, list[str]]:
    heard: list[str] = []
    return Commands().run(shell(folder, *lines), heard.append), heard


def written(path: Path) -> str:
    """What stands in the file at `path`, as soon as something does."""
    return wait_until(lambda: path.read_text().strip() if path.exists() else None)


def test_lines_are_heard_as_they_come_from_both_streams(tmp_path):
    heard: list[tuple[str, float]] = []
    Commands().run(
        shell(tmp_path, "echo one; sleep 0.5; echo two >&2"), lambda line: heard.append((line, time.monotonic()))
    )
    assert [line for line, _ in heard] == ["$ echo one; sleep 0.5; echo two >&2", "one", "two"]
    assert heard[2][1] - heard[1][1] > 0.3


def test_the_first_line_that_fails_is_the_last_one(tmp_path):
    ended, heard = run(tmp_path, "echo a", "echo b; exit 3", "echo c")
    assert (ended.code, ended.how, ended.tail) == (3, "exit code 3", "a\nb")
    assert "c" not in heard
    assert run(tmp_path, "kill -TERM $$")[0].how == "ended by SIGTERM"


def test_the_end_of_the_output_is_kept_and_a_progress_bar_is_one_line(tmp_path):
    ended, heard = run(tmp_path, "seq 100; printf '10%%\\r50%%\\r100%%\\n'; printf 'no end'")
    assert ended.tail.splitlines() == [*map(str, range(83, 101)), "100%", "no end"]
    assert len(heard) == 103


def test_bytes_that_are_no_text_and_a_line_without_end_are_given_on(tmp_path):
    _, heard = run(tmp_path, "printf '\\377\\n'; head -c 200000 /dev/zero | tr '\\0' x")
    assert heard[1] == "\ufffd"
    assert "".join(heard[2:]) == "x" * 200000


def test_what_a_command_leaves_running_does_not_hold_its_stage(tmp_path):
    started = time.monotonic()
    ended, heard = run(tmp_path, "sleep 30 & echo $! > pid; echo done")
    assert time.monotonic() - started < 10
    assert (ended.code, heard[-1]) == (0, "done")
    subprocess.run(["kill", written(tmp_path / "pid")], check=True)


def test_commands_read_no_terminal(tmp_path):
    assert run(tmp_path, "read line || echo nothing to read")[1][-1] == "nothing to read"


@pytest.mark.parametrize("stubborn", [False, True])
def test_stop_ends_all_that_a_command_has_started_and_lets_no_other_begin(tmp_path, monkeypatch, stubborn):
    monkeypatch.setattr(commands, "PATIENCE_SECONDS", 1)
    running, ended = Commands(), []
    ignore = "trap '' INT;" if stubborn else ""
    slow = shell(tmp_path, f"{ignore} sleep 60 & echo $! > pid; {ignore} sleep 60; sleep 60", "echo next > next")
    thread = threading.Thread(target=lambda: ended.append(running.run(slow, lambda _: None)))
    thread.start()
    process = written(tmp_path / "pid")
    running.stop()
    thread.join(15)
    assert not thread.is_alive()
    assert ended[0].code != 0
    wait_until(lambda: not lives(process), seconds=5)  # a killed process goes when the system has come to it
    assert not (tmp_path / "next").exists()
    assert running.run(shell(tmp_path, "echo x > x"), lambda _: None).code != 0
    assert not (tmp_path / "x").exists()


def test_where_this_process_is_killed_its_commands_end(tmp_path):
    code = (
        "import sys; from pathlib import Path; from flows.commands import *; folder = Path(sys.argv[1]);"
        "line = 'sh -c \"echo \\$\\$ > pid; sleep 60\"; sleep 60';"
        "Commands().run(Shell((line,), (['/bin/sh', '-c', line],), folder, {'PATH': '/usr/bin:/bin'}), print)"
    )
    from tests.conftest import REPOSITORY

    process = subprocess.Popen(["python", "-c", code, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    child = written(tmp_path / "pid")
    assert lives(child)
    process.kill()
    process.wait()
    wait_until(lambda: not lives(child), seconds=5)
