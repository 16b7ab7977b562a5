"""Removes each guard of history.py in a copy of the tree, and wants to see its test fail.

    python tests/run_guards.py [NUMBER …]

Slow: C guards are built each time. Needs what an editable install needs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from history import ROWS

ROOT = Path(__file__).resolve().parent.parent
IGNORED = shutil.ignore_patterns(".git", "*.egg-info", "build", "__pycache__", ".*_cache", "*.so")


def build(tree: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    extension = tree / "src" / "spawnhelper"
    if not list(extension.glob("_spawnhelper*.so")):
        raise SystemExit(f"no extension in {extension}")


def passes(tree: Path, test: str) -> bool:
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    # A session of its own: without guard 20 the test ends its whole process group.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{test}"]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, timeout=60,
            start_new_session=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def main() -> None:
    wanted = {int(number) for number in sys.argv[1:]} or {row.number for row in ROWS}
    weak = []
    with tempfile.TemporaryDirectory(prefix="spawnhelper-guards-") as name:
        Path(name).chmod(0o755)
        tree = Path(name) / "tree"
        shutil.copytree(ROOT, tree, ignore=IGNORED)
        build(tree)
        for row in ROWS:
            if row.number not in wanted:
                continue
            source = tree / row.file
            original = source.read_text()
            assert original.count(row.guard) == 1, row
            if not passes(tree, row.test):
                weak.append(row.number)
                print(f"{row.number:2} FAILS WITH ITS GUARD    {row.test}", flush=True)
                continue
            source.write_text(original.replace(row.guard, row.without))
            if row.file.startswith("csrc"):
                build(tree)
            seen = not passes(tree, row.test)
            source.write_text(original)
            if row.file.startswith("csrc"):
                os.utime(source)
                build(tree)
            if not seen:
                weak.append(row.number)
            word = "seen to fail" if seen else "STILL PASSES"
            print(f"{row.number:2} {word}    {row.what} ({row.test}; {row.file})", flush=True)
    sys.exit(f"weak: {weak}" if weak else 0)


if __name__ == "__main__":
    main()
