"""Exit hooks: order, re-entrancy, what is raised, forks, and coroutine functions."""

import asyncio
import os
import subprocess
import sys

import pytest

from spawnhelper import process

pytestmark = pytest.mark.core


def test_last_in_first_out_with_arguments():
    calls = []
    process.atexit_register(lambda *args, **keywords: calls.append((args, keywords)), 1, a=2)
    process.atexit_register(calls.append, "last")
    assert process.run_exitfuncs() is None
    assert calls == ["last", ((1,), {"a": 2})]
    process.run_exitfuncs()
    assert len(calls) == 2  # forgotten


def test_registered_by_a_hook_runs_in_the_same_pass():
    calls = []

    def first():
        calls.append("first")
        process.atexit_register(calls.append, "second")

    process.atexit_register(calls.append, "third")
    process.atexit_register(first)
    process.run_exitfuncs()
    assert calls == ["first", "second", "third"]


def test_a_hook_that_runs_the_hooks():
    calls = []
    process.atexit_register(calls.append, "inner")
    process.atexit_register(process.run_exitfuncs)
    process.run_exitfuncs()
    assert calls == ["inner"]


def fail(error):
    raise error


def test_the_last_exception_is_raised_as_itself(capfd):
    """Also one whose class has another constructor."""
    first = UnicodeDecodeError("utf-8", b"x", 0, 1, "told you")
    second = KeyError("printed")
    calls = []
    process.atexit_register(fail, first)
    process.atexit_register(calls.append, "between")
    process.atexit_register(fail, second)
    with pytest.raises(UnicodeDecodeError) as caught:
        process.run_exitfuncs()
    assert caught.value is first
    assert calls == ["between"]
    printed = capfd.readouterr().err
    assert "KeyError: 'printed'" in printed
    assert "told you" in printed


def test_system_exit_is_kept_silently(capfd):
    process.atexit_register(fail, SystemExit(5))
    with pytest.raises(SystemExit) as caught:
        process.run_exitfuncs()
    assert caught.value.code == 5
    process.atexit_register(fail, SystemExit(5))
    process.atexit_register(fail, ValueError("x"))
    with pytest.raises(SystemExit):
        process.run_exitfuncs()
    assert "SystemExit" not in capfd.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt("x"), GeneratorExit("x"), ValueError("x")])
def test_every_exception_is_kept_and_printed(error, capfd):
    process.atexit_register(fail, error)
    with pytest.raises(type(error)) as caught:
        process.run_exitfuncs()
    assert caught.value is error
    assert type(error).__name__ in capfd.readouterr().err


def test_inherited_hooks_are_dropped():
    calls = []
    process.atexit_register(calls.append, "parent's")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            process.atexit_register(calls.append, "child's")
            process.run_exitfuncs()
            status = 0 if calls == ["child's"] else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0) == (pid, 0)
    process.run_exitfuncs()
    assert calls == ["parent's"]


def run_program(text, status=0):
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status, done.stderr
    return done


def test_at_the_end_of_the_program():
    text = (
        "import asyncio\nfrom spawnhelper import process\n"
        "async def late(x): await asyncio.sleep(0); print(x)\n"
        "process.atexit_register(print, 'a')\n"
        "process.atexit_register(late, 'coroutine')\n"
        "process.atexit_register(print, 'b')\n"
    )
    assert run_program(text).stdout.split() == ["b", "a", "coroutine"]


def test_a_child_of_a_fork_that_ends_normally_runs_its_own_only():
    text = (
        "import os, sys\nfrom spawnhelper import process\n"
        "async def coroutine(): print('coroutine', flush=True)\n"
        "process.atexit_register(coroutine)\n"
        "process.atexit_register(print, 'parent', flush=True)\n"
        "if os.fork() == 0:\n"
        "    process.atexit_register(print, 'child', flush=True)\n"
        "    sys.exit()\n"
        "os.wait()\n"
    )
    assert run_program(text).stdout.split() == ["child", "parent", "coroutine"]


def test_before_multiprocessing_waits_for_its_children():
    """Else a hook that ends a child could never run (bugs.gentoo.org/937384)."""
    text = (
        "from spawnhelper import process\n"
        "import multiprocessing, time\n"
        "def main():\n"
        "    context = multiprocessing.get_context('fork')\n"
        "    child = context.Process(target=time.sleep, args=(600,))\n"
        "    child.start()\n"
        "    process.atexit_register(child.terminate)\n"
        "main()\n"
    )
    run_program(text)


# ---- coroutine functions ----


def test_run_when_their_loop_is_closed():
    calls = []

    async def hook(name):
        calls.append(f"{name} begins")
        await asyncio.sleep(0)
        calls.append(f"{name} ends")

    async def main():
        process.atexit_register(hook, "a")
        process.atexit_register(hook, name="b")

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    process.run_exitfuncs()  # not theirs
    assert calls == []
    loop.close()
    assert calls == ["b begins", "a begins", "b ends", "a ends"]  # newest first, together
    assert loop.is_closed()
    loop.close()
    assert len(calls) == 4


def test_run_by_hand_in_their_loop():
    calls = []

    async def hook():
        calls.append(asyncio.get_running_loop())

    async def main():
        process.atexit_register(hook)
        await process.run_coroutine_exitfuncs()
        await process.run_coroutine_exitfuncs()
        return asyncio.get_running_loop()

    assert [asyncio.run(main())] == calls


def test_another_loop_leaves_them_alone():
    calls = []

    async def hook():
        calls.append(1)

    async def register():
        process.atexit_register(hook)

    mine, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    mine.run_until_complete(register())
    other.run_until_complete(process.run_coroutine_exitfuncs())
    other.close()
    assert calls == []
    mine.close()
    assert calls == [1]


def test_the_last_exception_of_coroutines_is_raised(capfd):
    async def hook(error):
        raise error

    first, second = ValueError("first"), OSError("second")

    async def main():
        process.atexit_register(hook, first)
        process.atexit_register(hook, second)
        await process.run_coroutine_exitfuncs()

    with pytest.raises(ValueError, match="first") as caught:
        asyncio.run(main())
    assert caught.value is first
    assert "OSError: second" in capfd.readouterr().err


def test_a_loop_that_nobody_closes_is_run_at_the_end():
    text = (
        "import asyncio\nfrom spawnhelper import process\n"
        "async def late(loop): print(loop is asyncio.get_running_loop())\n"
        "async def main(): process.atexit_register(late, asyncio.get_running_loop())\n"
        "loop = asyncio.new_event_loop()\n"
        "loop.run_until_complete(main())\n"
    )
    assert run_program(text).stdout == "True\n"


def test_in_the_middle_of_a_running_loop_close_is_the_loops_business():
    async def hook():
        pass

    async def main():
        process.atexit_register(hook)
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop().close()
        await process.run_coroutine_exitfuncs()

    asyncio.run(main())
