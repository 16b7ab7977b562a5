"""Run the suite in each forced mode: python tests/run_modes.py [pytest arguments].

A mode is a list of kernel features to do without (docs/kernels.md).
"""

import os
import subprocess
import sys

MODES = [
    "clone3",
    "clone3,vfork",
    "pidfd",
    "clone3,pidfd",
    "clone3,vfork,pidfd",
    "close_range",
    "close_range,listing",
    "shared_files",
    "pidfd_info",
]

# These look at the plain path itself, or set features on their own.
OTHERS = ["test_strace.py", "test_seccomp.py", "test_emulators.py", "test_fault_injection.py",
          "test_isolation_faults.py", "test_fdplan.py", "test_storm.py", "test_child_object.py",
          "test_typing.py", "test_doctor.py"]  # fmt: skip


def main() -> int:
    here = os.path.dirname(os.path.abspath(__file__))
    modes = os.environ.get("MODES", "").split() or MODES
    failed = []
    for mode in modes:
        print(f"== without {mode}", flush=True)
        ignored = [f"--ignore={os.path.join(here, name)}" for name in OTHERS]
        command = [sys.executable, "-m", "pytest", "-q", *ignored, *(sys.argv[1:] or [here])]
        env = {**os.environ, "SPAWNHELPER_AVOID": mode}
        if subprocess.run(command, env=env, check=False).returncode:
            failed.append(mode)
    print("failed:", failed or "none")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
