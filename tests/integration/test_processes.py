"""`ackline worker`: a parent and its processes, here of stand-ins for the worker."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ackline.infra import ready
from tests import notes
from tests.processes import alive
from tests.roles import READY_SECONDS, ROOT, STOP_SECONDS
from tests.waiting import until

#: What every stand-in begins with. It leaves a file with its number and pid, and does what files tell it to.
PROLOGUE = """
import os, signal, sys, time
from pathlib import Path
from ackline.consumers.processes import Place
from ackline.infra.ready import ready
from tests import notes
place = Place.taken_from(os.environ)
place.take()
folder = Path(sys.argv[1])
journal = place.journal
def note(what, text=""):
    notes.add(folder / what, f"{place.number} {os.getpid()} {text}")
def finish(*_):
    note("stopped")
    if (folder / "deaf").exists():
        return
    sys.exit(0)
signal.signal(signal.SIGTERM, finish)
note("started")
"""

WORKS = f"""{PROLOGUE}
ready()
while True:
    time.sleep(0.01)
    told = folder / f"{{place.number}}.do"
    if told.exists():
        said = told.read_text()
        told.unlink()
        exec(said)
"""

PARENT = """
import json, sys
from pathlib import Path
from ackline.consumers.processes import Processes
from ackline.consumers.reloading import Sources
from ackline.infra.logs import configure_logging
configure_logging()
folder, count, options = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
if options.pop("reload", False):
    options["sources"] = Sources((), folder / "app")
command = [sys.executable, "-c", (folder / "program").read_text(), str(folder)]
sys.exit(Processes(command, count, grace_seconds=options.pop("grace", 30.0), **options).run())
"""


class Parent:
    """A parent with its processes; what they say and do is in *folder*."""

    def __init__(self, folder: Path, count: int, program: str, options: str) -> None:
        self.folder = folder
        (folder / "app").mkdir()
        (folder / "program").write_text(program)
        read, write = os.pipe()
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PARENT, str(folder), str(count), options],
                env=os.environ | {ready.VARIABLE: str(write)},
                pass_fds=[write],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        os.close(write)
        self._pipe = read

    def wait_ready(self) -> None:
        """Until it has said that it is ready."""
        assert select.select([self._pipe], [], [], READY_SECONDS)[0], self.log
        assert os.read(self._pipe, 64) == ready.LINE, self.log

    @property
    def said_ready(self) -> bool:
        return bool(select.select([self._pipe], [], [], 0)[0])

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def noted(self, what: str) -> list[tuple[int, int]]:
        """(number, pid) of each that noted *what*, in order."""
        return [(int(line.split()[0]), int(line.split()[1])) for line in notes.read(self.folder / what)]

    def texts(self, what: str) -> list[str]:
        """What was noted with it."""
        return [line.split(" ", 2)[2] for line in notes.read(self.folder / what)]

    def do(self, number: int, code: str) -> None:
        """Have the process *number* run *code*."""
        told = self.folder / f"{number}.told"
        told.write_text(code)
        told.rename(self.folder / f"{number}.do")

    def wait(self) -> int:
        return self.process.wait(STOP_SECONDS)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._pipe)


Start = Callable[..., Parent]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Parent] = []

    def begin(count: int = 1, program: str = WORKS, options: str = "{}", *, is_ready: bool = True) -> Parent:
        started.append(Parent(tmp_path, count, program, options))
        if is_ready:
            started[-1].wait_ready()
        return started[-1]

    yield begin
    for each in started:
        each.close()


def test_it_is_ready_when_all_processes_are(start: Start) -> None:
    late = WORKS.replace(
        "ready()\nwhile", "while place.number == 3 and not (folder / 'go').exists(): pass\nready()\nwhile"
    )
    parent = start(3, late, is_ready=False)
    until(lambda: len(parent.noted("started")) == 3, what="all three to start")
    assert not parent.said_ready
    (parent.folder / "go").touch()
    parent.wait_ready()
    assert sorted(number for number, _ in parent.noted("started")) == [1, 2, 3]


def test_sigterm_stops_every_process_and_then_the_parent_with_0(start: Start) -> None:
    parent = start(2)
    parent.process.terminate()
    assert parent.wait() == 0
    assert sorted(parent.noted("stopped")) == sorted(parent.noted("started"))
    assert not any(alive(pid) for _, pid in parent.noted("started"))
    assert parent.log == ""


def test_a_signal_to_the_group_of_the_parent_reaches_the_parent_alone(start: Start) -> None:
    # Ctrl-C in a terminal, or the guardian of `ackline up`. To the processes a second one means: at once.
    parent = start(2)
    groups = {os.getpgid(pid) for _, pid in parent.noted("started")}
    assert os.getpgid(parent.process.pid) not in groups
    assert len(groups) == 2


def test_a_second_sigterm_ends_everything_at_once(start: Start) -> None:
    parent = start(2)
    (parent.folder / "deaf").touch()
    parent.process.terminate()
    until(lambda: len(parent.noted("stopped")) == 2, what="both to be told")
    assert parent.process.poll() is None
    parent.process.terminate()
    assert parent.wait() == -signal.SIGTERM
    assert not any(alive(pid) for _, pid in parent.noted("started"))


def test_a_process_that_does_not_stop_is_killed_after_the_grace(start: Start) -> None:
    parent = start(1, options='{"grace": -9.5}')
    (parent.folder / "deaf").touch()
    parent.process.terminate()
    assert parent.wait() == 0
    assert "did not stop in 0.5 s; killed" in parent.log


def test_processes_end_with_a_parent_that_is_killed(start: Start) -> None:
    parent = start(2)
    parent.process.kill()
    until(lambda: not any(alive(pid) for _, pid in parent.noted("started")), what="both to end")
    assert parent.noted("stopped") == []


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("os._exit(3)", "exit code 3"),
        ("os._exit(0)", "exit code 0"),
    ],
)
def test_a_process_that_dies_is_started_again_and_said_in_one_line(start: Start, code: str, how: str) -> None:
    parent = start(2)
    before = dict(parent.noted("started"))
    parent.do(2, code)
    until(lambda: len(parent.noted("started")) == 3, what="the second one to come back")
    assert parent.noted("started")[2][0] == 2
    assert alive(before[1])
    [line] = parent.log.splitlines()
    assert line.endswith(f"worker process 2 (pid {before[2]}) ended: {how}. Started again in 0.5 s")


def test_one_that_keeps_dying_is_started_later_and_later(start: Start) -> None:
    dies = WORKS.replace("ready()\nwhile", "ready()\nif (folder / 'dies').exists(): os._exit(3)\nwhile")
    parent = start(1, dies)
    (parent.folder / "dies").touch()
    parent.do(1, "os._exit(3)")
    until(lambda: parent.log.count("\n") >= 3, what="three deaths")
    assert re.findall(r"again in (\S+) s", parent.log)[:3] == ["0.5", "1", "2"]


def test_what_is_wrong_at_the_first_start_is_said_once_and_ends_it_with_the_same_code(start: Start) -> None:
    parent = start(3, PROLOGUE + "print('No broker is configured.', file=sys.stderr); sys.exit(2)", is_ready=False)
    assert parent.wait() == 2
    assert parent.log == "No broker is configured.\n"
    assert len(parent.noted("started")) == 1


def test_a_message_that_ends_the_first_process_before_it_is_ready_does_not_end_the_worker(start: Start) -> None:
    dies = PROLOGUE + "if not (folder / 'died').exists(): note('died'); journal.own.enter(b'poison'); os._exit(3)\n"
    parent = start(1, dies + WORKS.removeprefix(PROLOGUE))
    assert "ended: exit code 3; 1 message was in a handler, handled apart from now on." in parent.log


def test_what_was_in_a_handler_is_a_suspect_to_all_processes(start: Start) -> None:
    parent = start(2)
    parent.do(1, "journal.own.leave(journal.own.enter(b'good')); journal.own.enter(b'bad'); os._exit(3)")
    until(lambda: len(parent.noted("started")) == 3, what="the first one to come back")
    for number in (1, 2):
        parent.do(number, "note('names', f'{journal.names(b\"bad\")} {journal.names(b\"good\")}')")
    until(lambda: parent.texts("names") == ["True False"] * 2, what="both to name it")


def test_a_process_that_ends_because_it_was_told_to_makes_no_suspects(start: Start) -> None:
    parent = start(2, options='{"reload": true}')
    parent.do(1, "journal.own.enter(b'slow'); note('entered')")
    until(lambda: parent.noted("entered"), what="the note")
    (parent.folder / "app" / "handlers.py").touch()
    until(lambda: len(parent.noted("started")) == 4, what="both to start again")
    parent.do(2, "note('names', journal.names(b'slow'))")
    until(lambda: parent.texts("names") == ["False"], what="the answer")


def test_one_that_holds_too_much_memory_is_killed_and_what_it_handled_is_a_suspect(start: Start) -> None:
    parent = start(2, options='{"max_memory": 157286400}')
    parent.do(1, "journal.own.enter(b'greedy'); hoard = b'x' * 400_000_000; time.sleep(600)")
    until(lambda: len(parent.noted("started")) == 3, what="it to come back")
    assert "ended: used more than 150 MB; 1 message was in a handler" in parent.log
    parent.do(2, "note('names', journal.names(b'greedy'))")
    until(lambda: parent.texts("names") == ["True"], what="the answer")


def test_the_kernel_would_take_a_process_before_its_parent(start: Start) -> None:
    parent = start(1)
    [(_, pid)] = parent.noted("started")
    score = {each: int(Path(f"/proc/{each}/oom_score_adj").read_text()) for each in (pid, parent.process.pid)}
    assert score[pid] > score[parent.process.pid]


def test_a_changed_source_starts_the_processes_again(start: Start) -> None:
    parent = start(2, options='{"reload": true}')
    (parent.folder / "app" / "handlers.py").touch()  # written at one moment: what is seen half written changes again
    until(lambda: len(parent.noted("started")) == 4, what="both to start again")
    assert sorted(parent.noted("stopped")) == sorted(parent.noted("started")[:2])
    assert f"{parent.folder / 'app' / 'handlers.py'} has changed; starting again" in parent.log


def test_an_application_that_cannot_be_imported_is_tried_again_at_the_next_change(start: Start) -> None:
    program = PROLOGUE + "(folder / 'app' / 'broken.py').exists() and sys.exit('SyntaxError')\n"
    parent = start(1, program + WORKS.removeprefix(PROLOGUE), options='{"reload": true}')
    (parent.folder / "app" / "broken.py").touch()
    until(lambda: "ended while starting (exit code 1); started again when a source changes" in parent.log)
    assert "SyntaxError" in parent.log
    assert parent.process.poll() is None
    (parent.folder / "app" / "broken.py").unlink()
    until(lambda: len(parent.noted("started")) == 3, what="it to start again")
