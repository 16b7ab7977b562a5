"""The end of the interpreter, atexit, __del__, daemon threads, forks: no crash, no hang."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.core
SPAWN = "from spawnhelper import spawn\n"


def run_program(program: str) -> str:
    """What it prints; it must end with status 0 and say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", f"import os, sys, threading\n{SPAWN}{program}"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_atexit():
    program = """
import atexit
atexit.register(lambda: print(spawn(["sh", "-c", "exit 3"])))
late = spawn(["sleep", "60"], returnproc=True)
atexit.register(lambda: (late.kill(), print(late.wait())))
"""
    assert run_program(program) == "-9\n3\n"


def test_del_at_the_end():
    program = """
class Late:
    def __del__(self, spawn=spawn):
        print(spawn(["/bin/sh", "-c", "exit 4"]))
late = Late()
sys.modules["late"] = late
"""
    assert run_program(program) == "4\n"


def test_daemon_threads_that_wait():
    program = """
children = [spawn(["sleep", "60"], fd_pipes={0: 0}, close_fds=True, returnproc=True)
            for _ in range(3)]
def block(process):
    ready.release()
    process.wait()
ready = threading.Semaphore(0)
for process in children:
    threading.Thread(target=block, args=(process,), daemon=True).start()
    ready.acquire()
print(*(process.pid for process in children), flush=True)
"""
    for pid in run_program(program).split():
        os.kill(int(pid), signal.SIGKILL)  # they run on; nobody waits for them here


def test_daemon_threads_that_spawn():
    program = """
def work():
    while True:
        spawn(["true"])
        count.release()
count = threading.Semaphore(0)
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
for _ in range(20):
    count.acquire()
"""
    run_program(program)


def test_handles_alive_at_the_end():
    program = """
import gc
alive = spawn(["sleep", "60"], returnproc=True)
cycle = [spawn(["true"], returnproc=True)]
cycle.append(cycle)
alive.kill()
"""
    run_program(program)


def test_reference_cycles_are_collected():
    program = """
import gc, warnings
from spawnhelper import _core
warnings.simplefilter("ignore")
for _ in range(50):
    cycle = [spawn(["true"], returnproc=True)]
    cycle.append(cycle)
del cycle
gc.collect()
while _core.list_dropped():
    spawn(["true"])
try:
    os.waitpid(-1, 0x40000000)
except ChildProcessError:
    print("none")
"""
    assert run_program(program) == "none\n"


@pytest.mark.leaves_helpers
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_beside_handles(method):
    program = f"""
import multiprocessing
from spawnhelper import as_completed
def work(code):
    children = [spawn(["sh", "-c", f"exit {{code}}"], returnproc=True) for _ in range(5)]
    return [process.returncode for process in as_completed(children)]
if __name__ == "__main__":
    with spawn(["sleep", "60"], returnproc=True) as process:
        with multiprocessing.get_context("{method}").Pool(2) as pool:
            assert pool.map(work, range(4)) == [[n] * 5 for n in range(4)]
        assert process.poll() is None
    print(process.returncode)
"""
    path = f"/proc/self/fd/{os.memfd_create('program')}"
    number = int(path.rsplit("/", 1)[1])
    try:
        text = "import os, sys\nfrom spawnhelper import spawn\n" + program
        os.write(number, text.encode())
        name = f"/proc/{os.getpid()}/fd/{number}"
        done = subprocess.run([sys.executable, name], capture_output=True, text=True,
                              timeout=60, check=False)  # fmt: skip
    finally:
        os.close(number)
    assert (done.returncode, done.stdout) == (0, "-9\n"), done.stderr
