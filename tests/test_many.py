"""Thousands of handles, and threads that share them.

SPAWNHELPER_CHILDREN sets how many short children the threads start (4,000 by default).
"""

import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from conftest import needs_root, open_fds
from spawnhelper import _core, as_completed, spawn, wait_any

pytestmark = pytest.mark.core

SLEEP = ["sleep", "60"]


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("RLIMIT_NOFILE is too low")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_wait_any():
    with spawn(SLEEP, returnproc=True) as slow:
        quick = spawn(["sh", "-c", "exit 3"], returnproc=True)
        assert wait_any([slow, quick]) is quick
        assert wait_any([slow, quick], 0) is quick
        with pytest.raises(TimeoutError):
            wait_any([slow], 0.05)
    with pytest.raises(ValueError, match="empty"):
        wait_any([])


def test_as_completed():
    processes = [spawn(["sh", "-c", f"exit {n}"], returnproc=True) for n in range(200)]
    processes[0].wait()
    order = list(as_completed([*processes, processes[0]]))
    assert order[0] is processes[0]
    assert sorted(p.returncode for p in order) == list(range(200))
    assert list(as_completed([])) == []


def test_as_completed_in_the_order_of_ends():
    processes = [spawn(SLEEP, returnproc=True) for _ in range(5)]
    waiter = as_completed(processes)
    for victim in (3, 1, 4, 0, 2):
        processes[victim].kill()
        assert next(waiter) is processes[victim]
    with pytest.raises(StopIteration):
        next(waiter)


def test_what_has_ended_comes_first_under_any_limit():
    """poll(2) takes no more descriptors than RLIMIT_NOFILE, whatever is open."""
    low = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    processes = [spawn(SLEEP, returnproc=True) for _ in range(2 * low[-1])]
    for fd in low:
        os.close(fd)
    half = len(processes) // 2
    for process in processes[half:]:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    waiter = as_completed(processes)
    assert {next(waiter) for _ in range(5)} <= set(processes[half:])
    del waiter
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (low[-1] + 1, hard))  # room for the epoll
    try:
        waiter = as_completed(processes * 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    ended = {next(waiter) for _ in range(half)}
    assert len(ended & set(processes[:half])) == 0
    for process in processes[:half]:
        process.kill()
    assert ended | set(waiter) == set(processes)


def test_as_completed_given_up():
    with spawn(SLEEP, returnproc=True) as process:
        before = open_fds()
        waiter = as_completed([process], timeout=0.05)
        with pytest.raises(TimeoutError, match="1 processes still run"):
            next(waiter)
        del waiter
        gc.collect()
        assert open_fds() == before
        waiter = as_completed([process])
        del waiter
        gc.collect()
        fd = process.pidfd
        process.kill()
        process.wait()
        assert process.pidfd == -1
        assert fd == -1 or fd not in open_fds()


def test_as_completed_while_a_thread_reaps():
    """The pidfd is held: epoll would forget one that the thread closed."""
    processes = [spawn(SLEEP, returnproc=True) for _ in range(50)]
    threads = [threading.Thread(target=process.wait) for process in processes]
    for thread in threads:
        thread.start()
    waiter = as_completed(processes)
    for process in processes:
        process.kill()
    assert {id(process) for process in waiter} == {id(process) for process in processes}
    for thread in threads:
        thread.join()


def test_in_a_forked_child():
    with spawn(SLEEP, returnproc=True) as process:
        pid = os.fork()
        if pid == 0:
            for call in (wait_any, lambda processes: next(as_completed(processes))):
                try:
                    call([process])
                except RuntimeError:
                    continue
                os._exit(1)
            os._exit(0)
        assert os.waitpid(pid, 0) == (pid, 0)


def test_a_forked_child_takes_nothing_from_the_parents_iterator():
    processes = [spawn(SLEEP, returnproc=True) for _ in range(3)]
    waiter = as_completed(processes)
    processes[1].kill()
    os.waitid(os.P_PID, processes[1].pid, os.WEXITED | os.WNOWAIT)
    pid = os.fork()
    if pid == 0:
        try:
            next(waiter)
        except RuntimeError:
            waiter.close()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0) == (pid, 0)
    assert next(waiter) is processes[1]
    for process in processes:
        process.kill()
    assert len(list(waiter)) == 2


def test_interrupted():
    class Struck(BaseException):
        pass

    def handler(*_):
        raise Struck

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with spawn(SLEEP, returnproc=True) as process:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Struck):
                wait_any([process])
            assert process.poll() is None
    finally:
        signal.signal(signal.SIGALRM, before)


def test_high_descriptors(many_descriptors, tmp_path):
    """Beyond the first few, pidfds move away; what others have there is still inherited."""
    processes = [spawn(SLEEP, returnproc=True) for _ in range(300)]
    try:
        if processes[0].pidfd < 0:
            return
        assert processes[-1].pidfd > 512
        free = processes[200].pidfd
        processes[200].kill()
        processes[200].wait()
        with open(tmp_path / "file", "w") as file:
            for number in (free, 4000):
                os.dup2(file.fileno(), number, inheritable=True)
                assert spawn(["sh", "-c", f"echo {number} >&{number}"], path_lookup=True) in (0, 2)
                found = spawn(["test", "-e", f"/proc/self/fd/{number}"])
                assert found == 0
                os.set_inheritable(number, False)
                assert spawn(["test", "-e", f"/proc/self/fd/{number}"]) == 1
                os.close(number)
        inherited = spawn(["sh", "-c", "ls /proc/self/fd | wc -l >&2; exit 5"], close_fds=False)
        assert inherited == 5
        last = processes[-1].pidfd
        assert spawn(["test", "-e", "/proc/self/fd/7"], fd_pipes={7: last}) == 0
        with pytest.raises(OSError):
            os.set_inheritable(free, False)
    finally:
        for process in processes:
            process.kill()
        for process in as_completed(processes):
            assert process.returncode == -9


def test_memory_of_a_handle(many_descriptors):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    processes = [spawn(SLEEP, returnproc=True) for _ in range(100)]
    before = resident()
    processes += [spawn(SLEEP, returnproc=True) for _ in range(1000)]
    used = (resident() - before) / 1000
    for process in processes:
        process.kill()
    for _ in as_completed(processes):
        pass
    assert used <= 2048


def test_dropped_ones_are_all_reaped():
    with pytest.warns(ResourceWarning):
        for _ in range(100):
            spawn(["true"], returnproc=True)
    while _core.list_dropped():
        assert spawn(["true"]) == 0


CAMPAIGN = """
import json, os, queue, signal, sys, threading
from spawnhelper import _core, spawn
total, target = int(sys.argv[1]), sys.argv[2]
lock, errors, done, hits, pids = threading.Lock(), [], [0], [0], set()
shared = [None] * 32
stop = threading.Event()

def work(number):
    import random
    choose = random.Random(number).randrange
    while True:
        with lock:
            if done[0] >= total:
                return
            done[0] += 1
        try:
            process = spawn([target], returnproc=True)
            pids.add(process.pid)
            old, shared[choose(32)] = shared[choose(32)], process
            for other in (old, process, shared[choose(32)]):
                if other is not None:
                    other.send_signal(signal.SIGUSR1)
                    other.poll()
            code = process.wait()
            if code not in (0, -signal.SIGUSR1):
                errors.append(code)
            process.send_signal(signal.SIGUSR1)
        except BaseException as error:
            errors.append(repr(error))

def canaries():
    # Strangers, which live as short as the commands and take the pids that these leave.
    while not stop.is_set():
        pid = os.posix_spawn(target, [target], {}, setsigdef=[signal.SIGUSR1])
        status = os.waitpid(pid, 0)[1]
        hits[0] += status != 0
        pids.add(-pid)

threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
birds = threading.Thread(target=canaries)
birds.start()
for thread in threads: thread.start()
for thread in threads: thread.join()
stop.set()
birds.join()
shared.clear()
try:
    os.waitpid(-1, 0x40000000)
    errors.append("a child was left")
except ChildProcessError:
    pass
recycled = len({-p for p in pids if p < 0} & {p for p in pids if p > 0})
print(json.dumps({"errors": errors[:5], "hits": hits[0], "recycled": recycled}))
"""


def run_campaign(total: int, prefix: list[str]) -> dict:
    target = shutil.which("true")
    command = [*prefix, sys.executable, "-c", CAMPAIGN, str(total), target]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return json.loads(output)


def test_threads_signal_and_reap():
    total = int(os.environ.get("SPAWNHELPER_CHILDREN", "4000"))
    found = run_campaign(total, [])
    assert (found["errors"], found["hits"]) == ([], 0)


@needs_root
def test_threads_never_signal_a_stranger():
    """In a pid namespace with 350 numbers, so that each is used again and again."""
    total = int(os.environ.get("SPAWNHELPER_CHILDREN", "4000"))
    script = 'echo 350 >/proc/sys/kernel/pid_max || exit 77; exec "$@"'
    prefix = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("pid_max is not per namespace (Linux 6.14), or no namespaces")
    found = run_campaign(total, prefix)
    assert (found["errors"], found["hits"]) == ([], 0)
    assert found["recycled"] > 20
