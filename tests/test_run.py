"""`python -m spawnhelper run`: what it passes on, its statuses, and job control on a terminal."""

import errno
import inspect
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import spawnhelper
from conftest import NOBODY, ORDINARY, needs_ordinary_python, needs_pidfd, needs_root, needs_vfork
from spawnhelper import _cli

RUN = [sys.executable, "-m", "spawnhelper", "run"]
LIMIT = 60
BASH = next((path for path in ("/bin/bash", "/usr/bin/bash") if os.path.exists(path)), None)
needs_bash = pytest.mark.skipif(BASH is None, reason="no bash here")


def run(*words, **keywords):
    """Its output is text; stdin is empty."""
    keywords = {"capture_output": True, "stdin": subprocess.DEVNULL, **keywords}
    return subprocess.run([*RUN, *words], text=True, timeout=LIMIT, check=False, **keywords)


def can_isolate(**keywords):
    try:
        return spawnhelper.spawn(["true"], **keywords) == 0
    except spawnhelper.SpawnError:
        return False


USER = [] if os.geteuid() == 0 else ["--user"]
isolates = can_isolate(unshare_pid=True, unshare_net=True, unshare_user=bool(USER))
needs_isolation = pytest.mark.skipif(not isolates, reason="isolation is not permitted here")


# ---- options ----

# What has no option: the results of a call that does not wait, and Python objects.
NO_OPTION = {"mycommand", "returnpid", "returnproc", "pre_exec", "namespaces"}
OPTION_OF = {
    "fd_pipes": "--fd", "path_lookup": "--no-path-lookup", "start_new_session": "--new-session",
    **{f"unshare_{name}": f"--{name}" for name in ("net", "ipc", "mount", "pid", "user")},
}  # fmt: skip


def test_every_keyword_of_spawn_has_an_option():
    parser = _cli._make_run_parser("x")
    keywords = set(inspect.signature(spawnhelper.spawn).parameters)
    for keyword in keywords - NO_OPTION:
        option = OPTION_OF.get(keyword, "--" + keyword.replace("_", "-"))
        assert option in parser._option_string_actions, keyword
    assert set(_cli._make_keywords(parser.parse_args(["x"]))) == keywords - NO_OPTION


@pytest.mark.parametrize("word", ["", "--bad", "--fd x", "--fd 1=2=3", "--umask 9", "--unshare x",
                                  "--uid nobody-at-all", "--groups nogroup-at-all", "--gid -",
                                  "--isolation little", "--unshare ''"])  # fmt: skip
def test_wrong_usage_is_one_line_and_125(word):
    done = run(*shlex.split(word), *(["true"] if word else []))
    assert done.returncode == 125
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


def report(probe, *options, **keywords):
    path = probe.report_path()
    done = run(*options, "--", str(probe.program), str(path), **keywords)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return probe.read(path)


def test_env(probe, monkeypatch):
    monkeypatch.setenv("KEPT", "a=b")
    seen = report(probe, "--clear-env", "--env", "KEPT", "--env", "X=1=2", "--env", "UNSET-NAME")
    assert seen["env"] == ["KEPT=a=b", "X=1=2"]
    seen = report(probe, "--env", "KEPT=")
    assert "KEPT=" in seen["env"]
    assert "KEPT=a=b" not in seen["env"]
    assert any(word.startswith("PATH=") for word in seen["env"])


def test_surroundings(probe, tmp_path):
    seen = report(probe, "--cwd", str(tmp_path), "--umask", "027", "--opt-name", "other name")
    assert seen["cwd"] == str(tmp_path)
    assert seen["umask"] == 0o027
    assert seen["argv"] == ["other name"]


def test_descriptors(probe, tmp_path):
    with open(tmp_path / "file", "w") as file:
        fd = file.fileno()
        facts = os.fstat(fd)
        seen = report(probe, "--fd", f"5={fd}", pass_fds=[fd])["fds"]
        assert seen[5][:2] == (facts.st_dev, facts.st_ino)
        assert set(seen) == {0, 1, 2, 5}  # the source goes, as spawn() says
        done = run("--fd", "0=-", "--fd", f"{fd}=-", "sh", "-c", "ls /proc/$$/fd", pass_fds=[fd])
        assert done.stdout.split() == ["1", "2"]
        seen = report(probe, pass_fds=[fd])["fds"]
        assert set(seen) == {0, 1, 2, fd}
        seen = report(probe, "--close-fds", pass_fds=[fd])["fds"]
        assert set(seen) == {0, 1, 2}


def test_logfile(tmp_path):
    log = tmp_path / "log"
    done = run("--logfile", str(log), "sh", "-c", "echo out; echo err >&2; exit 3")
    assert done.returncode == 3
    assert done.stdout == log.read_text() == "out\nerr\n"
    done = run("--logfile", str(tmp_path), "true")
    assert done.returncode == 125
    assert "Is a directory" in done.stderr


def test_path_lookup(tmp_path):
    program = tmp_path / "here"
    program.write_text("#!/bin/sh\nexit 5\n")
    program.chmod(0o755)
    assert run("here", env={**os.environ, "PATH": str(tmp_path)}).returncode == 5
    assert run("--no-path-lookup", "here", cwd=tmp_path).returncode == 5
    assert run("--no-path-lookup", "true", cwd=tmp_path).returncode == 127


@needs_root
def test_user(probe):
    seen = report(probe, "--uid", "nobody", "--gid", str(NOBODY), "--groups", "7,9")
    assert set(seen["uids"]) == set(seen["gids"]) == {NOBODY}
    assert sorted(seen["groups"]) == [7, 9]
    assert report(probe, "--groups", "")["groups"] == []


@pytest.mark.parametrize("words", [["echo", "--", "-x"], ["--", "echo", "--", "-x"]])
def test_dashes_belong_to_the_command(words):
    assert run(*words).stdout == "-- -x\n"


# ---- statuses ----


@pytest.mark.parametrize("status", [0, 1, 125, 255])
def test_status(status):
    assert run("sh", "-c", f"exit {status}").returncode == status


@pytest.mark.parametrize("name", ["HUP", "INT", "KILL", "SEGV", "TERM"])
def test_status_of_a_signal(name):
    done = run("sh", "-c", f"kill -{name} $$")
    assert done.returncode == 128 + getattr(signal, f"SIG{name}")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "status", "stage", "error"),
    [
        (["no-such-program"], 127, "EXEC", "not found in PATH"),
        (["/no/such/program"], 127, "EXEC", errno.ENOENT),
        (["/etc/passwd"], 126, "EXEC", errno.EACCES),
        (["/"], 126, "EXEC", errno.EACCES),
        (["--cwd", "/no/such", "true"], 125, "CHDIR", errno.ENOENT),
        (["--fd", "5=999", "true"], 125, "FDS", errno.EBADF),
        (["--cgroup", "/no/such", "true"], 125, "CGROUP", errno.ENOENT),
    ],
)
def test_errors_are_one_line_with_the_stage(words, status, stage, error):
    done = run(*words)
    text = error if isinstance(error, str) else os.strerror(error)
    assert done.returncode == status
    assert re.fullmatch(rf"spawnhelper: .*{stage}: .*{re.escape(text)}.*\n", done.stderr)


def test_bad_values_are_one_line():
    done = run("--env", "=x", "true")
    assert (done.returncode, done.stderr) == (
        125, "spawnhelper: env: a name is empty or contains '='\n",
    )  # fmt: skip


def test_best_effort_warns_in_one_line():
    done = run("--cgroup", "/no/such", "--isolation", "best-effort", "sh", "-c", "exit 4")
    assert done.returncode == 4
    assert re.fullmatch(r"spawnhelper: warning: less isolated .*CGROUP: .*\n", done.stderr)


@needs_isolation
def test_isolation():
    script = "echo $$ $(ls /sys/class/net 2>/dev/null | wc -l) $(id -u); hostname; kill -9 $$"
    done = run(*USER, "--unshare", "net,ipc", "--pid", "--", "sh", "-c", script)
    assert done.returncode == 128 + 9
    first, host = done.stdout.splitlines()
    assert first.split()[0] == "2"
    assert host == "localhost"


@needs_isolation
@needs_ordinary_python
@pytest.mark.parametrize("option", ["--user", "--user-root"])
def test_as_an_ordinary_user(option):
    """Without any right; inside they are had, as the error says."""

    def try_it(*options):
        python, env = ORDINARY
        ids = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        words = [*RUN[1:], *options, "--unshare", "net,pid,mount,ipc", "id", "-u"]
        return subprocess.run(
            [*python, *words], env=env, cwd="/", capture_output=True, text=True, check=False, **ids
        )

    refused = try_it()
    assert refused.returncode == 125
    assert re.search(r"^spawnhelper: NAMESPACES: .* needs CAP_SYS_ADMIN.* --user", refused.stderr)
    had = try_it(option)
    uid = os.geteuid() or NOBODY
    assert (had.returncode, had.stdout) == (0, f"{0 if 'root' in option else uid}\n"), had.stderr


# ---- signals without a terminal ----


def start(*words, **keywords):
    return subprocess.Popen(
        [*RUN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **keywords
    )


@pytest.mark.parametrize("options", [[], ["--new-session"]])
@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "TERM", "USR1", "RTMIN"])
def test_a_signal_for_it_reaches_the_command(name, options):
    code = (
        "import signal, sys\n"
        f"signal.signal(signal.SIG{name}, lambda *_: sys.exit(42))\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    with start(*options, sys.executable, "-c", code, start_new_session=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, f"SIG{name}"))
        assert process.wait(LIMIT) == 42
        assert process.stderr.read() == ""


def test_a_signal_that_kills_the_command():
    with start("sh", "-c", "echo ready; exec sleep 60") as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(LIMIT) == 128 + signal.SIGTERM


def test_ignored_hangups_stay_ignored():
    """As nohup(1) wants it."""
    script = 'trap "" HUP; exec "$@"'
    show = "grep SigIgn /proc/self/status; kill -HUP $PPID; kill -HUP $$; echo alive"
    command = ["sh", "-c", script, "sh", *RUN, "sh", "-c", show]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.stdout.endswith("alive\n"), done
    assert done.returncode == 0


def test_the_signal_mask_and_dispositions_are_passed_on():
    show = ["grep", "Sig[BIC]", "/proc/self/status"]
    plain = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    assert run(*show).stdout == plain


def test_a_caller_that_ignores_sigchld():
    code = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); " + (
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *RUN, "sh", "-c", "exit 9"]
    assert subprocess.run(command, timeout=LIMIT, check=False).returncode == 9


# ---- on a terminal ----


class Shell:
    """bash with job control, on a pseudoterminal."""

    PROMPT = "ready> "

    def __init__(self) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(PS1=self.PROMPT, TERM="dumb", HISTFILE="", PYTHONWARNINGS="error")
            os.execv(BASH, ["bash", "--norc", "--noprofile", "--noediting", "-i"])
        self.text = ""
        self.wait_for(re.escape(self.PROMPT))
        self.ask("stty -echo")  # bash keeps what a command of its own has set
        self.ask("set -b; unset PROMPT_COMMAND")

    def wait_for(self, pattern):
        """Everything up to the pattern."""
        deadline = time.monotonic() + LIMIT
        while (found := re.search(pattern, self.text)) is None:
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.text!r}"
            try:
                self.text += os.read(self.fd, 65536).decode()
            except OSError:
                raise AssertionError(f"the terminal closed: {self.text!r}") from None
        before, self.text = self.text[: found.end()], self.text[found.end() :]
        return before

    def write(self, text):
        os.write(self.fd, text.encode())

    def ask(self, line):
        """What a command prints before the next prompt."""
        self.write(line + "\n")
        return self.wait_for(re.escape(self.PROMPT))[: -len(self.PROMPT)]

    def status(self):
        return int(self.ask("echo $?"))

    def close(self):
        os.close(self.fd)
        os.waitpid(self.pid, 0)


@pytest.fixture
def shell():
    made = Shell()
    try:
        yield made
    finally:
        try:
            os.kill(made.pid, signal.SIGKILL)
        finally:
            made.close()


def line(*words):
    return shlex.join([*RUN, *words]) + "\n"


MODES = [
    [],
    ["--new-session"],
    pytest.param([*USER, "--pid"], marks=[needs_isolation, needs_vfork, needs_pidfd]),
    pytest.param(
        [*USER, "--pid", "--new-session"], marks=[needs_isolation, needs_vfork, needs_pidfd]
    ),
]
every_mode = pytest.mark.parametrize("options", MODES, ids=lambda words: " ".join(words) or "plain")

TALK = """
import os, signal
signal.signal(signal.SIGCONT, lambda *_: os.write(1, b"continued\\n"))
print("started", flush=True)
while True:
    signal.pause()
"""
CATCH = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGUSR1])
print("started", flush=True)
signal.sigwait([signal.SIGINT])
print("caught", flush=True)
"""


@needs_bash
@every_mode
def test_ctrl_c(shell, options):
    shell.write(line(*options, "sh", "-c", "echo started; exec sleep 60"))
    shell.wait_for("started\r\n")
    shell.write("\x03")
    shell.wait_for(re.escape(Shell.PROMPT))
    assert shell.status() == 128 + signal.SIGINT


@needs_bash
@every_mode
def test_ctrl_c_that_the_command_handles(shell, options):
    """We outlive it, and its status is what counts."""
    shell.write(line(*options, sys.executable, "-c", CATCH + "sys.exit(3)"))
    shell.wait_for("started\r\n")
    shell.write("\x03")
    shell.wait_for("caught\r\n")
    shell.wait_for(re.escape(Shell.PROMPT))
    assert shell.status() == 3


@needs_bash
def test_ctrl_c_comes_once(shell):
    code = CATCH + (
        "signal.sigwait([signal.SIGUSR1])\n"
        "print('more:', signal.SIGINT in signal.sigpending(), flush=True)\n"
    )
    shell.write(line(sys.executable, "-c", code))
    shell.wait_for("started\r\n")
    shell.write("\x03")
    shell.wait_for("caught\r\n")
    # One handed on besides the terminal's would have come before this one.
    job = next(int(pid) for pid in jobs_of(shell.pid))
    os.kill(job, signal.SIGUSR1)
    shell.wait_for("more: False\r\n")


def jobs_of(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@needs_bash
def test_ctrl_c_ends_a_loop_in_the_shell(shell):
    shell.write(f"while true; do {line('sh', '-c', 'echo started; exec sleep 60').strip()}; done\n")
    shell.wait_for("started\r\n")
    shell.write("\x03")
    shell.wait_for(re.escape(Shell.PROMPT))
    assert "started" not in shell.ask("echo over")


@needs_bash
@every_mode
def test_ctrl_z_and_fg(shell, options):
    shell.write(line(*options, sys.executable, "-c", TALK))
    shell.wait_for("started\r\n")
    shell.write("\x1a")
    stopped = shell.wait_for(re.escape(Shell.PROMPT))
    assert "Stopped" in stopped
    job = int(jobs_of(shell.pid)[0])
    states = [state_of(int(child)) for child in jobs_of(job)]
    assert "T" in states, states  # the command
    assert state_of(job) == "T"
    shell.write("fg\n")
    shell.wait_for("continued\r\n")
    shell.write("\x1a")
    shell.wait_for(re.escape(Shell.PROMPT))
    shell.write("bg\n")
    if "continued" not in shell.wait_for(re.escape(Shell.PROMPT)):
        shell.wait_for("continued\r\n")
    shell.write("fg\n")
    wait_until(lambda: os.tcgetpgrp(shell.fd) == job)
    shell.write("\x03")
    shell.wait_for(re.escape(Shell.PROMPT))
    assert shell.status() == 128 + signal.SIGINT


@needs_bash
@every_mode
def test_keys_without_a_pause(shell, options):
    """However quickly a Ctrl-Z follows an fg, it is for a job that runs."""
    shell.write(line(*options, sys.executable, "-c", TALK))
    shell.wait_for("started\r\n")
    for _ in range(300):
        shell.write("\x1a")
        shell.wait_for(re.escape(Shell.PROMPT))
        shell.write("fg\n")
        shell.wait_for("continued\r\n")
    shell.write("\x03")
    shell.wait_for(re.escape(Shell.PROMPT))
    assert shell.status() == 128 + signal.SIGINT


@needs_bash
@every_mode
def test_continued_alone(shell, options):
    """A SIGCONT that only we get is for the command, too."""
    shell.write(line(*options, sys.executable, "-c", TALK))
    shell.wait_for("started\r\n")
    shell.write("\x1a")
    shell.wait_for(re.escape(Shell.PROMPT))
    job = int(jobs_of(shell.pid)[0])
    os.kill(job, signal.SIGCONT)
    shell.wait_for("continued\r\n")
    os.kill(job, signal.SIGTERM)
    wait_until(lambda: not jobs_of(shell.pid))


def wait_until(holds):
    """For what the kernel tells nobody about."""
    limit = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < limit
        os.sched_yield()


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@needs_bash
def test_a_command_that_stops_itself_stops_the_job(shell):
    shell.write(line("sh", "-c", "kill -STOP $$; echo again"))
    assert "Stopped" in shell.wait_for(re.escape(Shell.PROMPT))
    shell.write("fg\n")
    shell.wait_for("again\r\n")
    shell.wait_for(re.escape(Shell.PROMPT))
    assert shell.status() == 0


@needs_bash
def test_reading_in_the_background_stops_the_job(shell):
    shell.ask(line("sh", "-c", "read word </dev/tty; echo got $word").rstrip() + " & wait $!")
    shell.write("fg\n")
    shell.wait_for("sh -c.*\r\n")
    shell.write("something\n")
    shell.wait_for("got something\r\n")
    shell.wait_for(re.escape(Shell.PROMPT))
    assert shell.status() == 0


@needs_bash
@every_mode
def test_closing_the_terminal(shell, options, tmp_path):
    """Everything ends by SIGHUP: seen by the end of a pipe that it holds."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    shell.write(line(*options, "sh", "-c", f"exec 9>{fifo}; echo started >&9; exec sleep 60"))
    with open(fifo) as reader:
        assert reader.readline() == "started\n"
        made = shell.fd
        shell.fd = os.open("/dev/null", os.O_RDWR)
        os.close(made)
        ready, _, _ = select.select([reader], [], [], LIMIT)
        assert ready
        assert reader.read() == ""


@needs_bash
@pytest.mark.parametrize("options", [[], MODES[2]], ids=["plain", "pid"])
def test_an_interactive_shell_inside(shell, options):
    """It has job control of its own, and the terminal comes back."""
    inner = [BASH, "--norc", "--noprofile", "--noediting", "-i"]
    shell.write(line(*options, "--env", "PS1=inner> ", *inner))
    assert "job control" not in shell.wait_for("inner> ")
    shell.write("sleep 60\n")
    wait_until(lambda: foreground_command(shell.fd) == "sleep")
    shell.write("\x1a")
    assert "Stopped" in shell.wait_for("inner> ")
    shell.write("fg\n")
    wait_until(lambda: foreground_command(shell.fd) == "sleep")
    shell.write("\x03")
    shell.wait_for("inner> ")
    shell.write("exit 6\n")
    shell.wait_for(re.escape(Shell.PROMPT))
    assert shell.status() == 6


def foreground_command(fd):
    try:
        return Path(f"/proc/{os.tcgetpgrp(fd)}/comm").read_text().strip()
    except OSError:
        return None


@needs_bash
@needs_isolation
@needs_vfork
@needs_pidfd
def test_the_terminal_comes_back_to_a_script(shell):
    """A shell in a pid namespace cannot give it back: whoever reads next would stop."""
    inner = [BASH, "--norc", "--noprofile", "--noediting", "-i"]
    command = line(*USER, "--pid", "--env", "PS1=inner> ", *inner).strip()
    shell.write(f"sh -c {shlex.quote(command + '; read word; echo got $word')}\n")
    shell.wait_for("inner> ")
    shell.write("exit\n")
    shell.wait_for("exit\r\n")
    shell.write("something\n")
    shell.wait_for("got something\r\n")


# ---- help ----


def test_help_names_every_option_and_status():
    done = run("--help")
    assert done.returncode == 0
    for option in _cli._make_run_parser("x")._option_string_actions:
        assert option in done.stdout
    for status in ("125", "126", "127", "128+n"):
        assert status in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_the_examples_of_the_help_parse():
    parser = _cli._make_run_parser("x")
    examples = re.findall(r"^  spawnhelper run (.*)$", _cli._RUN, re.MULTILINE)
    assert len(examples) >= 6
    for example in examples:
        words = shlex.split(re.split(r"  +|\d?>", example)[0])
        parser.parse_args([word for word in words if word != "nobody" and word != "--uid"])


def test_without_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "spawnhelper"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "run" in done.stderr
    version = [sys.executable, "-m", "spawnhelper", "--version"]
    assert spawnhelper.__version__ in subprocess.check_output(version, text=True)


def test_import_of_the_library_does_not_load_it():
    code = (
        "import sys, json, spawnhelper; print(json.dumps([name for name in sys.modules if name "
        "in ('argparse', 'spawnhelper._cli', 'spawnhelper._foreground', 'spawnhelper._doctor')]))"
    )
    assert json.loads(subprocess.check_output([sys.executable, "-c", code])) == []
