"""The 35 classes of bugs that process.py of portage has had, and what guards ours against each.

Each row: number, class, test, and the guard as (file, text, text without it).
tests/test_history.py checks the table; tests/run_guards.py removes each guard in a
copy of the tree and sees the test fail.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    number: int
    what: str
    test: str
    file: str
    guard: str
    without: str


PROCESS = "src/spawnhelper/process.py"
CORE = "src/spawnhelper/_core.py"
HOOKS = "src/spawnhelper/_hooks.py"
CHILD = "csrc/spawnhelper.c"
ISOLATION = "csrc/isolation.h"

ROWS = [
    Row(
        1,
        "cleanup of the caller runs in a child whose exec failed",
        "test_door_alone.py::test_exec_failure_runs_no_cleanup",
        PROCESS,
        "    finally:\n        os._exit(status)\n",
        "    finally:\n        pass\n",
    ),
    Row(
        2,
        "race between fork and that protection",
        "test_history.py::test_02_no_python_handler_runs_between_fork_and_protection",
        "csrc/pyfork.c",
        "    sh_block_signals(&mask);\n    orders->mask = mask;",
        "    SYS(rt_sigprocmask, 0, NULL, &mask, sizeof mask);\n    orders->mask = mask;",
    ),
    Row(
        3,
        "dispositions and the wakeup fd of the caller reach the child",
        "test_history.py::test_03_dispositions_and_wakeup_fd",
        CHILD,
        "for (unsigned i = 0; i < sizeof wanted; i++) {",
        "for (unsigned i = sizeof wanted; i < sizeof wanted; i++) {",
    ),
    Row(
        4,
        "overlapping descriptors clobber one another",
        "test_door_alone.py::test_setup_pipes_arranges_any_map",
        "csrc/fdplan.c",
        "return index >= 0 && pairs[index].source != pair->source ? index : -1;",
        "return 0 * index - 1;",
    ),
    Row(
        5,
        "inheritable flag lost, or copied from the wrong descriptor",
        "test_door_alone.py::test_setup_pipes_flags",
        PROCESS,
        "wanted = target < 3 or os.get_inheritable(source)",
        "wanted = target < 3 or os.get_inheritable(target)",
    ),
    Row(
        6,
        "descriptors closed that Python objects own",
        "test_history.py::test_06_the_callers_files_stay_open",
        CHILD,
        "    if (orders->shared_files < 0)\n        return;",
        "    if (orders->shared_files < 0 || 1)\n        return;",
    ),
    Row(
        7,
        "descriptors leak into children",
        "test_history.py::test_07_nothing_of_ours_is_inherited",
        "csrc/logpipe.c",
        "SYS(pipe2, ends, O_CLOEXEC)",
        "SYS(pipe2, ends, 0)",
    ),
    Row(
        8,
        "enumeration of descriptors: odd names, no /proc, hard limit",
        "test_history.py::test_08_enumeration",
        "src/spawnhelper/_fds.py",
        " if name.isdigit())",
        ")",
    ),
    Row(
        9,
        "standard streams closed or replaced by the application",
        "test_door_spawn.py::test_closed_stdin_object",
        PROCESS,
        "if stdin is None or stdin.closed:",
        "if stdin is None:",
    ),
    Row(
        10,
        "encoding of arguments, environment and PATH",
        "test_history.py::test_10_undecodable_bytes",
        "src/spawnhelper/_request.py",
        'argv = "\\0".join(words).encode(_ENCODING, _ERRORS)',
        'argv = "\\0".join(words).encode(_ENCODING, "replace")',
    ),
    Row(
        11,
        "environment not inherited by default",
        "test_door_spawn.py::test_env",
        PROCESS,
        "started = start(given, command, env, name,",
        "started = start(given, command, env or {}, name,",
    ),
    Row(
        12,
        "current directory in PATH",
        "test_door_spawn.py::test_current_directory_in_path",
        "src/spawnhelper/_lookup.py",
        "for entry in entries:",
        "for entry in [*entries, name[:0]]:",
    ),
    Row(
        13,
        "proxies instead of ints; lazy groups evaluated in the child",
        "test_history.py::test_13_lazy_values_are_evaluated_here",
        PROCESS,
        "        int(uid) if uid else None,",
        "        uid or None,",
    ),
    Row(
        14,
        "waitpid misuse, races with somebody else's",
        "test_history.py::test_14_a_status_that_somebody_else_took",
        "csrc/wait.c",
        "    if (error == -ECHILD) {\n        record_loss(process);\n    } else if",
        "    if",
    ),
    Row(
        15,
        "kill refused on hardened kernels",
        "test_history.py::test_15_kill_where_pidfds_may_not_signal",
        "csrc/wait.c",
        "if (error == -ENOSYS || error == -EPERM) {",
        "if (error == -ENOSYS) {",
    ),
    Row(
        16,
        "a failed unshare damages the process",
        "test_door_alone.py::test_unshare_validate_leaves_this_process_alone",
        "csrc/alone.c",
        "    long pid = SYS(clone, SIGCHLD, 0, 0, 0, 0);",
        "    SYS(unshare, flags);\n    long pid = SYS(clone, SIGCHLD, 0, 0, 0, 0);",
    ),
    Row(
        17,
        "half-configured isolation changes the host",
        "test_history.py::test_17_no_host_name_without_its_namespace",
        ISOLATION,
        "    if (!(orders->isolation->births->namespaces & SH_NEWUTS))\n        return;",
        "",
    ),
    Row(
        18,
        "pid 1 is no init: orphans are not reaped",
        "test_history.py::test_18_orphans_are_reaped",
        ISOLATION,
        "    ignore_children();\n",
        "",
    ),
    Row(
        19,
        "init runs as the unprivileged user",
        "test_history.py::test_19_the_command_cannot_touch_pid_1",
        ISOLATION,
        "    ignore_children();\n    SYS(setsid);\n",
        "    ignore_children();\n    set_uid(orders);\n    SYS(setsid);\n",
    ),
    Row(
        20,
        "group signals hit the caller",
        "test_history.py::test_20_group_signals_stay_inside",
        ISOLATION,
        "    if (!(orders->request->flags & SH_NEW_SESSION))\n        return;",
        "    if (orders->request)\n        return;",
    ),
    Row(
        21,
        "nice has no effect in a new session",
        "test_history.py::test_21_nice_counts_in_a_pid_namespace",
        ISOLATION,
        "    keep_nice();\n",
        "    (void)keep_nice;\n",
    ),
    Row(
        22,
        "mtab polluted from the namespace",
        "test_history.py::test_22_proc_without_mount_program_or_mtab",
        ISOLATION,
        'error = SYS(mount, "proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);',
        "error = 0;",
    ),
    Row(
        23,
        "loopback: addresses that getaddrinfo needs",
        "test_door_alone.py::test_loopback_in_a_fresh_network_namespace",
        "csrc/net.h",
        "    orders->inet.bytes[0] = 10;",
        "    orders->inet.bytes[0] = 127;",
    ),
    Row(
        24,
        "host name not resolvable",
        "test_door_isolation.py::test_host_name_and_addresses",
        ISOLATION,
        'long error = SYS(sethostname, "localhost", 9);',
        "long error = 0;",
    ),
    Row(
        25,
        "exec in a process that unshared its pid namespace",
        "test_history.py::test_25_no_exec_after_unshare_of_the_pid_namespace",
        PROCESS,
        "        if unshare_pid:  # for children only",
        "        if False:  # for children only",
    ),
    Row(
        26,
        "argument list too long without a hint",
        "test_door_spawn.py::test_failure_goes_to_the_log_as_well",
        "src/spawnhelper/_trouble.py",
        "error.errno != errno.E2BIG",
        "error.errno",
    ),
    Row(
        27,
        "life of the object: process forgotten",
        "test_history.py::test_27_a_dropped_object_forgets_no_process",
        "csrc/drop.c",
        "        if (sh_reap(process) == 0) {\n            sh_lock(&sh_state.dropped_lock);\n"
        "            append(process);\n",
        "        if (sh_reap(process) == 0) {\n            sh_lock(&sh_state.dropped_lock);\n",
    ),
    Row(
        28,
        "os.environ and closures cannot be pickled",
        "test_history.py::test_28_nothing_is_pickled",
        "src/spawnhelper/_trouble.py",
        "    def reporting() -> None:\n",
        '    __import__("pickle").dumps(pre_exec)\n\n    def reporting() -> None:\n',
    ),
    Row(
        29,
        "exit hooks: inherited, run twice, deadlock with multiprocessing",
        "test_door_hooks.py::test_before_multiprocessing_waits_for_its_children",
        HOOKS,
        "    atexit.unregister(_at_exit)\n    atexit.register(_at_exit)\n",
        "",
    ),
    Row(
        30,
        "polling for the end: 100 ms for each start",
        "test_history.py::test_30_no_polling",
        CORE,
        "        done: int = _run_packed(",
        '        __import__("time").sleep(0.1)\n        done: int = _run_packed(',
    ),
    Row(
        31,
        "start methods of multiprocessing",
        "test_history.py::test_31_every_start_method",
        "csrc/state.c",
        "    sh_state.forks++;\n",
        "",
    ),
    Row(
        32,
        "termination while descriptors are handed over",
        "test_history.py::test_32_terminated_at_once",
        "csrc/logpipe.c",
        "void sh_log_started(struct sh_log *log) { close_one(&log->pipe_end); }",
        "void sh_log_started(struct sh_log *log) { log->pipe_end = -1; }",
    ),
    Row(
        33,
        "signal between fork and the reset of handlers",
        "test_history.py::test_33_signals_are_blocked_around_the_clone",
        "csrc/launch.c",
        "    int pidfd = -1;\n    sh_block_signals(&orders->mask);",
        "    int pidfd = -1;\n    SYS(rt_sigprocmask, 0, NULL, &orders->mask, 8);",
    ),
    Row(
        34,
        "cgroup that vanishes meanwhile",
        "test_door_isolation.py::test_cgroup_that_is_none",
        PROCESS,
        '*("best-effort" if isolated else "required", False, unshare[3]),',
        '*("required", False, unshare[3]),',
    ),
    Row(
        35,
        "has_ipv6 is always true",
        "test_door_alone.py::test_has_ipv6",
        PROCESS,
        "    except OSError:\n        return False\n    return True\n",
        "    except OSError:\n        return True\n    return True\n",
    ),
]
