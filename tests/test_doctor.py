"""`doctor` and `probe()`: each negative answer is provoked, and its advice followed helps."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import spawnhelper
from conftest import CC, HERE, NOBODY, ORDINARY, compile_c, needs_ordinary_python, needs_root
from instruments.isolation import find_hierarchy, needs_isolation, new_cgroup
from spawnhelper import Finding, ProbeResult, Setting, _doctor, probe
from spawnhelper._remedies import restriction

# From os.path of this interpreter; a start-up file may load another.
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
DOCTOR = ["-m", "spawnhelper", "doctor"]
RUN = [sys.executable, "-m", "spawnhelper", "run"]
AS_NOBODY = ["--uid", str(NOBODY), "--gid", str(NOBODY), "--groups", "", "--"]
LIMIT = 120
NAMESPACES = ["net", "ipc", "mount", "pid", "set"]


class Answer:
    """What `doctor --json` says."""

    def __init__(self, text):
        self.all = json.loads(text)
        self.findings = {each["name"]: Finding(**each) for each in self.all["findings"]}
        self.settings = {each["name"]: Setting(**each) for each in self.all["settings"]}

    def works(self, *names):
        return [self.findings[name].works for name in names]

    def refusal(self, name):
        finding = self.findings[name]
        assert finding.works is False, finding
        assert finding.reason
        return finding.remedy


def ask(*before, ordinary=False, script="", env=None):
    """In other circumstances: after a launcher, a script in a mount namespace, or as nobody."""
    python, python_env = ORDINARY if ordinary else ([sys.executable], ENV)
    command = [*before, *python, *DOCTOR, "--json"]
    if ordinary and os.geteuid() == 0:
        command = [*RUN, *AS_NOBODY, *command]
    if script:
        command = [*RUN, "--mount", "--", "sh", "-ec", f'{script}\nexec "$@"', "sh", *command]
    env = {**ENV, **python_env, **(env or {})}
    done = subprocess.run(
        command, env=env, cwd="/", capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return Answer(done.stdout)


@pytest.fixture(scope="module")
def deny(public_dir):
    if subprocess.run(
        [*CC, "-E", "-"], input="#include <seccomp.h>", text=True, capture_output=True, check=False
    ).returncode:
        pytest.skip("no libseccomp headers here")
    return str(compile_c(HERE / "instruments" / "deny.c", public_dir / "deny-doctor", "-lseccomp"))


@pytest.fixture
def scratch():
    """A directory that others may enter."""
    path = Path(tempfile.mkdtemp(prefix="spawnhelper-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


# ---- the answers ----


def test_probe_is_typed_frozen_and_complete():
    result = probe()
    assert isinstance(result, ProbeResult)
    names = [finding.name for finding in result.findings]
    assert len(set(names)) == len(names)
    assert set(names) == set(_doctor._TEXTS) | {
        f"user+{name}" for name in ("net", "loopback", "ipc", "mount", "pid", "proc", "set")
    }
    for finding in result.findings:
        assert isinstance(finding, Finding)
        assert bool(finding.reason) == (finding.works is not True)
        assert result.find(finding.name) is finding
    with pytest.raises(AttributeError):
        result.uid = 1
    with pytest.raises(LookupError, match=r"'nets' is none of start, clone3, .*into_cgroup"):
        result.find("nets")


def test_the_settings_are_those_of_the_system():
    for setting in probe().settings:
        path = Path("/proc/sys", *setting.name.split("."))
        if setting.name != "Seccomp":
            value = int(path.read_text()) if path.exists() else None
            assert setting.value == value


def test_what_works_works():
    """The answers against spawn() itself."""
    result = probe(ordinary_user=False)
    parts = {"net": ["net", "loopback"], "ipc": ["ipc"], "mount": ["mount"], "pid": ["pid", "proc"]}
    for prefix, user in (("", False), ("user+", True)):
        for kind, names in parts.items():
            findings = [result.find(prefix + name) for name in names]
            try:
                spawnhelper.spawn(["true"], unshare_user=user, **{f"unshare_{kind}": True})
            except spawnhelper.SpawnError as error:
                refused = next(finding for finding in findings if not finding.works)
                assert error.strerror.startswith(refused.reason)
                assert error.remedy == refused.remedy
            else:
                assert all(finding.works for finding in findings)


def test_text(monkeypatch, capsys):
    assert _doctor.report([], as_json=False) == 0
    text = capsys.readouterr().out
    assert "\033" not in text
    for finding in probe().findings:
        assert re.search(rf"^  (yes|no |\?  )  {re.escape(finding.name)} ", text, re.MULTILINE)
    for word in ("fs.suid_dumpable", "user.max_net_namespaces", "Seccomp"):
        assert word in text


def test_colours_are_for_terminals():
    """script(1) would do the same."""
    import pty

    def show(**env):
        pid, fd = pty.fork()
        if pid == 0:
            os.execve(sys.executable, [sys.executable, *DOCTOR], {**ENV, **env})
        text = b""
        while True:
            try:
                part = os.read(fd, 65536)
            except OSError:
                break
            if not part:
                break
            text += part
        os.close(fd)
        assert os.waitpid(pid, 0)[1] == 0
        return text

    assert b"\033[32myes\033[0m  start" in show()
    assert b"\033" not in show(NO_COLOR="1")


def need(*names, before=()):
    command = [*before, sys.executable, *DOCTOR, "--need", ",".join(names)]
    return subprocess.run(
        command, env=ENV, capture_output=True, text=True, timeout=LIMIT, check=False
    )


def test_need():
    assert need("start").returncode == 0
    unknown = need("start", "nets")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "'nets' is none of start" in unknown.stderr


# ---- system calls denied ----


def test_need_that_is_not_met(deny):
    done = need("start", "pidfd", before=[deny, "38", "pidfd_open"])
    assert done.returncode == 1
    assert done.stderr == "spawnhelper: pidfd is needed: Function not implemented\n"


@pytest.mark.parametrize("error", [1, 38], ids=["EPERM", "ENOSYS"])
@pytest.mark.parametrize(
    ("call", "names"),
    [
        ("clone3", ["clone3", "into_cgroup"]),
        ("close_range", ["close_range"]),
        ("pidfd_open", ["pidfd"]),
    ],
)
def test_kernel_features(deny, error, call, names):
    with_it, without = ask(), ask(deny, str(error), call)
    for name in names:
        assert with_it.works(name) == [True]  # the advice: a filter that allows it
        assert "a seccomp filter that allows it" in without.refusal(name)
        assert without.findings[name].reason == os.strerror(error)
    assert without.settings["Seccomp"].value == 2
    assert "filtered" in without.settings["Seccomp"].remedy
    assert with_it.settings["Seccomp"].remedy is None
    others = {"clone3", "close_range", "pidfd", "into_cgroup", "vfork", "start"} - set(names)
    assert without.works(*others) == with_it.works(*others)


def test_vfork():
    """As qemu-user and valgrind have it."""
    answer = ask(env={"SPAWNHELPER_AVOID": "clone3,vfork"})
    assert "natively" in answer.refusal("vfork")
    assert "commands are started by pipe" in answer.findings["clone3"].reason
    assert answer.works("start") == [True]


@needs_isolation
def test_namespaces_denied(deny):
    answer = ask(deny, "1", "unshare,setns,clone3,mount")
    assert answer.works("mount", "pid", "set") == [False] * 3
    for name in ("mount", "pid"):
        assert "a seccomp filter denies" in answer.refusal(name)


@needs_isolation
@needs_ordinary_python
def test_mounting_denied(deny):
    answer = ask(deny, "1", "mount", ordinary=True)
    assert answer.works("user", "user+net", "user+ipc", "user+pid") == [True] * 4
    for name in ("user+mount", "user+proc"):
        assert "a seccomp filter denies" in answer.refusal(name)


# ---- capabilities dropped ----


def without(*names):
    words = ",".join(f"-{name}" for name in names)
    return ["setpriv", f"--bounding-set={words}", f"--inh-caps={words}"]


@needs_isolation
def test_without_sys_admin():
    answer = ask(*without("sys_admin"))
    for name in NAMESPACES:
        remedy = answer.refusal(name)
        assert "CAP_SYS_ADMIN" in remedy
        assert "unshare_user=True" in remedy
    assert answer.works("loopback", "proc") == [None, None]
    # The advice followed.
    assert answer.works("user", *(f"user+{name}" for name in NAMESPACES)) == [True] * 6
    command = [*without("sys_admin"), *RUN, "--user", "--net", "--pid", "true"]
    assert subprocess.run(command, timeout=LIMIT, check=False).returncode == 0
    command.remove("--user")
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 125
    assert answer.findings["net"].remedy in done.stderr  # the library says the same


@needs_isolation
def test_without_net_admin():
    answer = ask(*without("net_admin"))
    assert answer.works("net") == [True]
    assert "CAP_NET_ADMIN" in answer.refusal("loopback")
    assert ask().works("loopback") == [True]


@needs_isolation
def test_without_sys_chroot():
    answer = ask(*without("sys_chroot"))
    assert answer.works("mount", "pid") == [True, True]
    assert "CAP_SYS_CHROOT" in answer.refusal("set")
    assert ask().works("set") == [True]


@needs_root
@needs_ordinary_python
def test_root_asks_an_ordinary_user():
    python, env = ORDINARY
    answer = Answer(
        subprocess.check_output([*python, *DOCTOR, "--json"], env={**ENV, **env}, text=True)
    )
    ordinary = ask(ordinary=True)
    for name in ordinary.findings:
        if name.startswith("user"):
            assert answer.findings[name] == ordinary.findings[name]
    assert ordinary.all["uid"] == NOBODY


@needs_root
def test_root_whose_python_nobody_can_run(scratch):
    """Then it is not said that it works."""
    private = scratch / "private"
    private.mkdir(mode=0o700)
    code = "import sys; from spawnhelper import _cli; sys.executable = sys.argv.pop(1); "
    code += "sys.exit(_cli.main())"
    (private / "python").symlink_to(sys.executable)
    command = [sys.executable, "-c", code, str(private / "python"), "doctor", "--json"]
    answer = Answer(subprocess.check_output(command, env=ENV, text=True))
    for name in ("user", "user+net", "user+set"):
        assert answer.works(name) == [None]
        assert str(private) in answer.findings[name].reason


# ---- sysctls ----


def in_user_namespace(script):
    """The limits there are its own, and writable by its root."""
    return [*RUN, "--user-root", "--mount", "--", "sh", "-ec", f'{script}\nexec "$@"', "sh"]


@needs_isolation
@pytest.mark.parametrize(
    ("limit", "names"),
    [
        ("user", ["user", "user+net", "user+pid"]),
        ("net", ["net", "set"]),
        ("uts", ["net"]),
        ("ipc", ["ipc"]),
        ("mnt", ["mount", "pid"]),
        ("pid", ["pid"]),
    ],
)
def test_limits(limit, names):
    name = f"user.max_{limit}_namespaces"
    path = f"/proc/sys/user/max_{limit}_namespaces"
    code = (  # root inside has CAP_SYS_ADMIN; nobody else has a uid there
        "import json; from spawnhelper import probe; r = probe(ordinary_user=False); "
        "print(json.dumps(dict(findings=[f._asdict() for f in r.findings], "
        "settings=[s._asdict() for s in r.settings])))"
    )

    def ask_inside(script):
        command = [*in_user_namespace(script), sys.executable, "-c", code]
        return Answer(subprocess.check_output(command, env=ENV, text=True, timeout=LIMIT))

    answer = ask_inside(f"echo 0 >{path}")
    assert answer.settings[name].value == 0
    remedy = answer.settings[name].remedy
    for each in names:
        assert answer.refusal(each) == remedy
    advice = re.search(r"sysctl -w (\S+)=(\d+)$", remedy)
    assert advice[1] == name
    followed = ask_inside(f"echo 0 >{path}; echo {advice[2]} >{path}")
    assert followed.works(*names) == [True] * len(names)
    assert followed.settings[name].remedy is None


# Below a chroot no user namespace can be made (EPERM), for whatever sysctls say.
IN_CHROOT = """
for name in /*; do
    if [ -d $name ] && [ ! -L $name ]; then mkdir -p {0}$name; mount --rbind $name {0}$name; fi
    if [ -L $name ]; then ln -sfn $(readlink $name) {0}$name; fi
done
"""


@needs_isolation
@needs_ordinary_python
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kernel.unprivileged_userns_clone", 0),
        ("kernel.apparmor_restrict_unprivileged_userns", 1),
        ("", 0),
    ],
)
def test_user_namespaces_refused(scratch, name, value):
    """The kernel of the tests may have no such sysctl: a mount shows one."""
    root, settings = scratch / "root", scratch / "kernel"
    root.mkdir()
    settings.mkdir()
    for file in ("overflowuid", "overflowgid", "pid_max", "cap_last_cap"):
        (settings / file).write_text(Path("/proc/sys/kernel", file).read_text())
    script = IN_CHROOT.format(root)
    if name:
        file = settings / name.rpartition(".")[2]
        file.write_text(f"{value}\n")
        script += f"mount --bind {settings} {root}/proc/sys/kernel\n"
    script += f'set -- chroot {root} "$@"'
    answer = ask(ordinary=True, script=script)
    remedy = answer.refusal("user")
    assert answer.refusal("user+net") == remedy
    if not name:
        assert "chroot" in remedy
        return
    assert answer.settings[name] == Setting(name, value, remedy)
    advice = re.search(r"sysctl -w (\S+)=(\d)$", remedy)
    assert advice[1] == name
    file.write_text(f"{advice[2]}\n")
    followed = ask(ordinary=True, script=script)
    assert followed.settings[name] == Setting(name, int(advice[2]), None)
    assert "chroot" in followed.refusal("user")  # what was in the way all the time


@needs_isolation
def test_suid_dumpable(scratch):
    file = scratch / "value"
    file.write_text("1\n")
    script = f"mount --bind {file} /proc/sys/fs/suid_dumpable"
    setting = ask(script=script).settings["fs.suid_dumpable"]
    assert setting.value == 1
    assert "fork" in setting.remedy
    file.write_text(re.search(r"fs\.suid_dumpable=(\d)", setting.remedy)[1])
    assert ask(script=script).settings["fs.suid_dumpable"] == Setting("fs.suid_dumpable", 0, None)


def test_restrictions_are_only_what_restricts():
    assert restriction("kernel.unprivileged_userns_clone", 1) is None
    assert restriction("kernel.apparmor_restrict_unprivileged_userns", 0) is None
    assert restriction("user.max_net_namespaces", 5) is None
    assert restriction("fs.suid_dumpable", 2) is None
    for name in ("kernel.unprivileged_userns_clone", "user.max_net_namespaces"):
        assert restriction(name, None) is None


# ---- /proc and cgroups ----


@needs_isolation
@needs_ordinary_python
def test_covered_proc():
    """As in containers."""
    cover = "mount --bind /dev/null /proc/version"
    answer = ask(ordinary=True, script=cover)
    assert answer.works("user+pid") == [True]
    assert "covered" in answer.refusal("user+proc")
    followed = ask(ordinary=True, script=f"{cover}; umount /proc/version")
    assert followed.works("user+pid", "user+proc") == [True, True]


needs_cgroup2 = pytest.mark.skipif(find_hierarchy(None) is None, reason="no cgroup v2 here")
UNMOUNT = "while read a b c d place rest; do case $rest in *' - cgroup'*) umount $place;; esac; "
UNMOUNT += "done </proc/self/mountinfo"


@needs_isolation
@needs_cgroup2
def test_without_cgroup_file_systems():
    answer = ask(script=UNMOUNT)
    remedy = answer.refusal("cgroup2")
    assert answer.works("delegation", "cgroup1") == [None, False]
    command = re.search("mount -t .*$", remedy)[0]
    followed = ask(script=f"{UNMOUNT}\n{command}")
    assert followed.works("cgroup2", "delegation") == [True, True]


@needs_isolation
@needs_cgroup2
def test_read_only_cgroups():
    script = f"mount -o remount,bind,ro {find_hierarchy(None)}"
    assert "writable" in ask(script=script).refusal("delegation")
    followed = f"{script}; mount -o remount,bind,rw {find_hierarchy(None)}"
    assert ask(script=followed).works("delegation") == [True]


@needs_isolation
@needs_cgroup2
@needs_ordinary_python
def test_delegation():
    answer = ask(ordinary=True)
    remedy = answer.refusal("delegation")
    assert "chown it and the files in it to this user" in remedy
    with new_cgroup(None) as cgroup:
        for path in (cgroup, *cgroup.iterdir()):
            os.chown(path, NOBODY, NOBODY)
        python, env = ORDINARY
        command = [*RUN, "--cgroup", str(cgroup), *AS_NOBODY, *python, *DOCTOR, "--json"]
        followed = Answer(
            subprocess.check_output(command, env={**ENV, **env}, cwd="/", timeout=LIMIT)
        )
        assert followed.works("delegation") == [True]
        assert list(cgroup.glob("*/")) == []  # nothing is left


def test_nothing_is_left_behind():
    """The fixture of every test looks at children and descriptors; cgroups are here."""
    probe()
    root = find_hierarchy(None)
    if root is not None:
        assert not list(root.glob(f"**/spawnhelper-probe-{os.getpid()}"))


def test_remedies_survive_pickling():
    import pickle

    with pytest.raises(spawnhelper.SpawnError) as caught:
        spawnhelper.spawn(["true"], cgroup="/no/such")
    assert caught.value.remedy in caught.value.strerror
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.remedy, str(copy)) == (caught.value.remedy, str(caught.value))
