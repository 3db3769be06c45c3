"""Generated code is run in its place: what loops, forks, writes outside, opens the network or takes
the memory is contained with the reason, also where it leaves Python to do so.
"""

import os
import re
import time

import pytest

from moxin_lab.evaluation import sandbox
from moxin_lab.evaluation.sandbox import SandboxError, run


def cannot_contain() -> str:
    """What this machine lacks; "" where it can contain a program, or should."""
    try:
        sandbox.check()
    except SandboxError as error:
        return str(error) if re.search("cannot contain|on Linux only", str(error)) else ""
    return ""


pytestmark = pytest.mark.skipif(bool(cannot_contain()), reason=cannot_contain())


def test_a_right_program_passes_and_a_wrong_one_fails_with_its_error():
    assert run("assert sorted([2, 1]) == [1, 2]") == ("passed", "")
    assert run("assert 1 == 2, 'not equal'") == ("failed", "AssertionError: not equal")
    assert run("def (") == ("failed", "SyntaxError: invalid syntax (program.py, line 1)")
    assert run("input()").reason.startswith("EOFError")


def test_ordinary_means_of_a_program_work_files_in_its_folder_threads_and_an_event_loop():
    program = """
import asyncio, math, tempfile, threading
open('notes.txt', 'w').write('x')
assert open('notes.txt').read() == 'x'
with tempfile.TemporaryFile() as file:
    file.write(b'y')
done = []
thread = threading.Thread(target=done.append, args=(1,))
thread.start(); thread.join()
assert done == [1]
async def two(): return 2
assert asyncio.run(two()) == 2
print('said to nobody')
"""
    assert run(program) == ("passed", "")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os\nos.fork()", "starts a process (os.fork)"),
        ("import subprocess\nsubprocess.run(['true'])", "starts a process (subprocess.Popen)"),
        ("import os\nos.system('true')", "starts a process (os.system)"),
        ("import socket\nsocket.socket()", "opens the network (socket.__new__)"),
        (
            "import socket\ntry:\n  socket.create_connection(('127.0.0.1', 9))\nexcept OSError: 0",
            "opens the network (socket.getaddrinfo)",
        ),
        ("import os\nos.kill(os.getppid(), 9)", "sends a signal (os.kill)"),
        ("x = b'a' * (3 << 30)", "needs more than 1,073,741,824 bytes of memory"),
    ],
)
def test_what_a_program_may_not_do_is_contained_with_the_reason(program, reason):
    assert run(program) == ("contained", reason)


@pytest.mark.parametrize(
    "program",
    [
        "open(r'{path}', 'w')",
        "open(r'{path}', 'a')",
        "import os\nos.remove(r'{path}')",
        "import os\nos.rename(r'{path}', 'mine')",
        "import os\nos.symlink(r'{path}', 'link')\nopen('link', 'w')",
        "import os\nos.chmod(r'{path}', 0)",
        "import os\ntry: os.truncate(r'{path}', 0)\nexcept OSError: pass",
    ],
)
def test_a_file_outside_the_folder_stays_as_it_is(tmp_path, program):
    path = tmp_path / "precious.txt"
    path.write_text("kept")
    outcome = run(program.format(path=path))
    assert outcome.verdict == "contained"
    assert outcome.reason.startswith("writes outside its folder")
    assert str(path) in outcome.reason
    assert path.read_text() == "kept"


def test_the_kernel_holds_code_that_leaves_python(tmp_path):
    """Through ctypes, where no audit hook sees it; every call must fail."""
    path = tmp_path / "precious.txt"
    path.write_text("kept")
    program = f"""
import ctypes, os
libc = ctypes.CDLL(None)
name = {os.fsencode(path)!r}
assert libc.fork() == -1
assert libc.socket(2, 1, 0) == -1
assert libc.open(name, os.O_WRONLY) == -1
assert libc.open(name + b'.new', os.O_CREAT | os.O_WRONLY, 0o644) == -1
assert libc.unlink(name) == -1
assert libc.truncate(name, 0) == -1
assert libc.rename(name, b'mine') == -1
assert libc.chmod(name, 0) == -1
assert libc.kill(os.getppid(), 9) == -1
assert libc.execv(b'/bin/true', None) == -1
assert libc.mount(None, b'/', None, 0, None) == -1
assert libc.prctl(24, 1, 0, 0, 0) == -1
assert libc.open(b'inside', os.O_CREAT | os.O_WRONLY, 0o644) >= 0
"""
    assert run(program) == ("passed", "")
    assert path.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(1000)"])
def test_a_program_that_does_not_end_is_ended(program):
    began = time.monotonic()
    assert run(program, seconds=2) == ("contained", "ran longer than 2 s")
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os\nos._exit(0)", "the process ended without a verdict (with status 0)"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("import ctypes\nctypes.string_at(0)", "the process ended without a verdict (by SIGSEGV)"),
    ],
)
def test_a_program_that_ends_itself_has_not_passed(program, reason):
    assert run(program) == ("failed", reason)


def test_programs_do_not_see_each_other_or_the_environment(monkeypatch):
    monkeypatch.setenv("MOXIN_API_KEY", "secret")
    program = "import os\nassert os.listdir('.') == []\nassert 'MOXIN_API_KEY' not in os.environ\n"
    wrote = "open('left', 'w').write('x')"
    assert [each.verdict for each in sandbox.run_all([wrote, program, "assert 0"], workers=1)] == [
        "passed",
        "passed",
        "failed",
    ]


def test_nothing_is_run_where_the_kernel_cannot_hold_it(monkeypatch, tmp_path):
    child = sandbox.CHILD.read_text(encoding="utf-8").replace("libseccomp.so.2", "no-such-library")
    broken = tmp_path / "child.py"
    broken.write_text(child, encoding="utf-8")
    monkeypatch.setattr(sandbox, "CHILD", broken)
    with pytest.raises(SandboxError, match="needs Linux with seccomp"):
        run("open('ran', 'w')")
    monkeypatch.undo()
    sandbox.check()


def test_without_landlock_no_file_is_written_at_all(monkeypatch, tmp_path):
    """An older kernel: the filter then refuses every opening for writing."""
    child = sandbox.CHILD.read_text(encoding="utf-8")
    assert child.count(" < 3:") == 1
    older = tmp_path / "child.py"
    older.write_text(child.replace(" < 3:", " < 99:"), encoding="utf-8")
    monkeypatch.setattr(sandbox, "CHILD", older)
    assert run("assert 1") == ("passed", "")
    assert run("open('inside', 'w')").reason.startswith("PermissionError")
    program = """
import ctypes, os
libc = ctypes.CDLL(None)
assert libc.open(b'inside', os.O_CREAT | os.O_WRONLY, 0o644) == -1
assert libc.mkdir(b'folder', 0o755) == -1
"""
    assert run(program) == ("passed", "")


@pytest.mark.parametrize(
    "program",
    [
        "for i in range(10**6):\n    open(str(i), 'w').close()\n",
        "b = b'x' * 2**20\nfor i in range(10**6):\n    open(str(i), 'wb').write(b)\n",
        "import os\nfor i in range(10**6):\n    os.mkdir(str(i))\n",
    ],
    ids=["files", "bytes", "folders"],
)
def test_a_program_that_fills_its_folder_is_ended_long_before_its_time(program):
    began = time.monotonic()
    outcome = run(program, seconds=60)
    assert outcome.verdict == "contained" and outcome.reason.startswith(
        "left more than 1,000 files"
    )
    assert time.monotonic() - began < 50


def test_the_reason_can_be_written_to_a_file_whatever_the_program_put_into_it():
    outcome = run("raise ValueError('half of \\ud83d' + chr(0))")
    assert outcome.verdict == "failed"
    assert outcome.reason == "ValueError: half of \\ud83d\x00"
    assert outcome.reason.encode("utf-8")


ODD_ENDS = {
    "prints a gibibyte": ("for _ in range(1024): print('x' * 2**20)", "passed"),
    "memory": ("x = bytearray(10 * 2**30)", "contained"),
    "endless words": (
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
        "contained",
    ),
    "no words": ("class E(Exception):\n    def __str__(self):\n        raise E\nraise E", "failed"),
    "destructor": ("class A:\n    def __del__(self):\n        while True: pass\na = A()", "passed"),
    "half a line": (
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'{')\n    except OSError: pass",
        "failed",
    ),
    "threads": (
        "import threading, time\nfor _ in range(5000):\n"
        "    threading.Thread(target=time.sleep, args=(60,)).start()",
        "failed",
    ),
    "nul": ("x = 1\0", "failed"),
    "surrogate": ("x = '\ud800'", "failed"),
    "nesting": ("(" * 100_000, "failed"),
}


@pytest.mark.parametrize("name", ODD_ENDS)
def test_odd_ends_of_a_program_have_a_verdict_within_its_time(name):
    program, verdict = ODD_ENDS[name]
    assert run(program, seconds=10).verdict == verdict
