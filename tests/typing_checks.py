"""Checked by mypy, never run: the types that users see."""

from typing import assert_type

from spawnhelper import Process, find_binary, spawn


def returns(flag: bool) -> None:
    assert_type(spawn("true"), int)
    assert_type(spawn(["true", b"x"], env={"A": "1"}, cwd="/", uid=0, groups=[]), int)
    assert_type(spawn("true", returnpid=True), list[int])
    assert_type(spawn("true", returnproc=True), Process)
    assert_type(spawn("true", returnproc=flag), int | list[int] | Process)
    assert_type(find_binary("x"), str | None)
    assert_type(find_binary(b"x"), bytes | None)


def handle(process: Process) -> None:
    assert_type(process.wait(1.5), int)
    assert_type(process.poll(), int | None)
    assert_type(process.returncode, int | None)
    with process as again:
        assert_type(again, Process)


def refused() -> None:
    spawn(b"true")  # type: ignore[arg-type]
    spawn("true", uid="nobody")  # type: ignore[call-overload]
    spawn("true", nonsense=1)  # type: ignore[call-overload]
