"""A real package manager on the door: portage (PyPI) builds a package through README's patch."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, needs_portage, needs_root

pytestmark = [needs_root, needs_portage]

EBUILD = """
EAPI=8
DESCRIPTION="Greets"
HOMEPAGE="https://example.org"
S="${WORKDIR}"
LICENSE=""
SLOT="0"
KEYWORDS="amd64"

seen() {
	echo "$1 pid=${BASHPID} uid=${EUID} host=$(uname -n)" >> "${T}"/seen || die
	for name in net ipc mnt pid; do
		echo "$1 ${name}=$(stat -L -c %i /proc/self/ns/${name})" >> "${T}"/seen || die
	done
}

src_unpack() {
	printf '#!/bin/sh\\necho hello\\n' > "${S}"/hello || die
}

src_compile() {
	seen compile
	sleep 600 &
	mount -t tmpfs none /mnt 2>/dev/null && echo "mounted=yes" >> "${T}"/seen
	( kill -TERM ${BASHPID} )
	[[ $? == 143 ]] || die "signals are broken"
}

src_install() {
	seen install
	dobin hello
}
"""

COUNT = """
import atexit, sys
import spawnhelper.process as door
engine, isolated, calls = door._launch, door._launch_isolated, [0, 0]
def counted(index, function):
    def call(*arguments, **keywords):
        calls[index] += 1
        return function(*arguments, **keywords)
    return call
door._launch_isolated = counted(1, isolated)
door._launch = counted(0, engine)
atexit.register(lambda: open(COUNTS, "w").write(repr(calls)))
sys.argv[0] = "under_portage.py"
exec(compile(PATCH, "under_portage.py", "exec"))
"""


def patch_of_readme():
    text = (ROOT / "README.md").read_text()
    section = text.partition("## Try it under portage")[2]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)


def test_the_patch_has_ten_lines():
    assert len(patch_of_readme().splitlines()) <= 10


def lay_out(base, features):
    """A repository with one package, a profile, a configuration and an empty root."""
    profile = base / "repository" / "profiles"
    package = base / "repository" / "app-test" / "hello"
    config = base / "config" / "etc" / "portage"
    for directory in (profile / "default", package, config, base / "root", base / "distfiles"):
        directory.mkdir(parents=True)
    (base / "repository" / "metadata").mkdir()
    (base / "repository" / "metadata" / "layout.conf").write_text(
        "masters =\nthin-manifests = true\nsign-manifests = false\n"
    )
    (profile / "repo_name").write_text("throwaway\n")
    (profile / "arch.list").write_text("amd64\n")
    (profile / "categories").write_text("app-test\n")
    (profile / "profiles.desc").write_text("amd64 default stable\n")
    (profile / "eapi").write_text("8\n")
    (profile / "default" / "eapi").write_text("8\n")
    (profile / "default" / "make.defaults").write_text(
        'ARCH="amd64"\nACCEPT_KEYWORDS="amd64"\nCHOST="x86_64-pc-linux-gnu"\n'
    )
    (config / "make.profile").symlink_to(profile / "default")
    (config / "repos.conf").write_text(
        f"[DEFAULT]\nmain-repo = throwaway\n[throwaway]\nlocation = {base}/repository\n"
    )
    (config / "make.conf").write_text(
        f'FEATURES="-sandbox -usersandbox -userpriv -userfetch {features}"\n'
        f'PORTAGE_TMPDIR="{base}"\nDISTDIR="{base}/distfiles"\n'
        'PORTAGE_USERNAME="root"\nPORTAGE_GRPNAME="root"\n'
        "PORTAGE_INST_UID=0\nPORTAGE_INST_GID=0\n"
    )
    (package / "hello-1.ebuild").write_text(EBUILD.lstrip())
    return package / "hello-1.ebuild"


SANDBOXES = ["network-sandbox", "ipc-sandbox", "mount-sandbox", "pid-sandbox"]


@pytest.mark.parametrize("sandboxed", [True, False])
def test_ebuild(sandboxed, public_dir):
    base = public_dir / f"ebuild-{sandboxed}"
    features = " ".join(name if sandboxed else f"-{name}" for name in SANDBOXES)
    ebuild = lay_out(base, features)
    counts = base / "counts"
    program = COUNT.replace("COUNTS", repr(str(counts))).replace("PATCH", repr(patch_of_readme()))
    if not sandboxed:  # what a sandbox cleans up by itself
        text = ebuild.read_text()
        ebuild.write_text(re.sub(r".*(sleep 600|mount -t).*\n", "", text))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "ebuild",
            ebuild,
            "manifest",
            "clean",
            "compile",
            "install",
        ],
        env={
            **os.environ,
            "PORTAGE_CONFIGROOT": str(base / "config"),
            "ROOT": str(base / "root"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "spawnhelper:" not in done.stdout, done.stdout
    work = base / "portage" / "app-test" / "hello-1"
    (installed,) = (work / "image").rglob("bin/hello")
    assert subprocess.run([installed], capture_output=True, check=True).stdout == b"hello\n"
    calls, isolated = eval(counts.read_text())
    assert calls > 5
    assert (isolated > 2) == sandboxed
    seen = dict(
        (" ".join(line.split()[:1]) + " " + word).split("=")
        for line in (work / "temp" / "seen").read_text().splitlines()
        for word in line.split()
        if "=" in word and " " in line
    )
    for phase in ("compile", "install"):
        for name in ("net", "ipc", "mnt", "pid"):
            own = os.stat(f"/proc/self/ns/{name}").st_ino
            assert (int(seen[f"{phase} {name}"]) != own) == sandboxed, (phase, name)
        assert seen[f"{phase} uid"] == "0"
        assert (seen[f"{phase} host"] == "localhost") == sandboxed
    assert ("mounted=yes" in (work / "temp" / "seen").read_text()) == sandboxed
    assert "tmpfs /mnt" not in Path("/proc/mounts").read_text()
    shutil.rmtree(base)
