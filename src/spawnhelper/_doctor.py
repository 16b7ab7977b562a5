"""``doctor``: what ``probe()`` found, for people and for programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

from . import __version__
from ._probe import Finding, ProbeResult, Setting, probe

_TEXTS = {
    "start": "commands start",
    "clone3": "signals reset and pidfd had at birth",
    "vfork": "memory shared until exec: the cost does not depend on our size",
    "pidfd": "handles that cannot hit a stranger; pid namespaces",
    "close_range": "descriptors closed in one call",
    "net": "a network of its own",
    "loopback": "with lo up and the host called localhost",
    "ipc": "System V IPC and message queues of its own",
    "mount": "mounts that stay inside",
    "pid": "processes that end with the command",
    "proc": "with a /proc of its own",
    "set": "a set of all these, made and entered (Namespaces)",
    "user": "a user namespace",
    "cgroup2": "cgroup v2 is mounted",
    "delegation": "a cgroup can be made below ours, and joined",
    "cgroup1": "the same in cgroup v1",
    "into_cgroup": "commands are born in a v2 cgroup (CLONE_INTO_CGROUP)",
}
_SECTIONS = {
    "start": "starting commands",
    "net": "isolation, as this user: unshare_*",
    "user": "isolation, without any right: unshare_user=True with unshare_*; run --user",
    "cgroup2": "cgroups: cgroup=DIR",
}
_MARKS = {True: ("yes", "32"), False: ("no", "31"), None: ("?", "33")}


def _paint(text: str, colour: str, colours: bool) -> str:
    return f"\033[{colour}m{text}\033[0m" if colours else text


def _show_finding(finding: Finding, above: Finding | None, colours: bool) -> Iterator[str]:
    word, colour = _MARKS[finding.works]
    text = _TEXTS[finding.name.removeprefix("user+")] if finding.works else finding.reason
    if above is not None and not finding.works and text == above.reason:
        text = "as above"
    yield f"  {_paint(f'{word:3}', colour, colours)}  {finding.name:13} {text}"


def _show_remedies(findings: Sequence[Finding]) -> Iterator[str]:
    """Each once, below its section."""
    for remedy in dict.fromkeys(finding.remedy for finding in findings if finding.remedy):
        names = [finding.name for finding in findings if finding.remedy == remedy]
        yield f"  -> {', '.join(names)}: {remedy}"


def _show_setting(setting: Setting) -> Iterator[str]:
    value = "not there" if setting.value is None else setting.value
    yield f"  {setting.name:46} {value}"
    if setting.remedy:
        yield f"  -> {setting.remedy}"


def _show(result: ProbeResult, colours: bool) -> Iterator[str]:
    yield f"spawnhelper {__version__}, Linux {result.kernel} {result.machine}, uid {result.uid}"
    section: list[Finding] = []
    for finding in result.findings:
        if finding.name in _SECTIONS:
            yield from _show_remedies(section)
            section = []
            yield _paint(_SECTIONS[finding.name], "1", colours)
        yield from _show_finding(finding, section[-1] if section else None, colours)
        section.append(finding)
    yield from _show_remedies(section)
    yield _paint("settings", "1", colours)
    for setting in result.settings:
        yield from _show_setting(setting)


def _to_json(result: ProbeResult) -> str:
    import json

    found = {
        **result._asdict(),
        "version": __version__,
        "findings": [finding._asdict() for finding in result.findings],
        "settings": [setting._asdict() for setting in result.settings],
    }
    return json.dumps(found, indent=2)


def report(needed: Sequence[str], as_json: bool) -> int:
    """Print what works here.

    Args:
        needed: names of findings.
        as_json: for programs.

    Returns:
        1 if something needed does not work, else 0.

    Raises:
        LookupError: a needed name is unknown.
    """
    result = probe()
    missing = result.missing(needed)
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(_to_json(result) if as_json else "\n".join(_show(result, colours)))
    for finding in missing:
        print(f"spawnhelper: {finding.name} is needed: {finding.reason}", file=sys.stderr)
    return int(bool(missing))
