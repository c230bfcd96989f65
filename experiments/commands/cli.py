"""The command line: arguments -> a command, prepared, then run.

A mistake in what was asked for is one line on standard error and exit status 2, before anything
is run or overwritten. A run that fails is a row of the table, and exit status 1.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import tyro

from experiments.runs.signals import STOP, Stopped
from experiments.runs.terminal import warn

R = TypeVar("R")

FAILED, MISTAKE = 1, 2

#: What shells say of a command whose output nobody reads on.
UNREAD = 128 + 13

#: Commands by name: where each is defined, nothing for a group of them. Three studies have names of
#: their own besides those of ``mcr2 study``.
COMMANDS: dict[str, str] = {
    "table": "experiments.studies.label_noise:LabelNoise",
    "ablate": "experiments.studies.ablations:Ablation",
    "redunet": "experiments.studies.construction:Construction",
    "study": "",
    "train": "experiments.commands.train:Train",
    "evaluate": "experiments.commands.evaluate:Evaluate",
    "reread": "experiments.commands.evaluate:Reread",
    "audit": "experiments.commands.audit:Audit",
    "status": "experiments.commands.status:Status",
    "show": "experiments.commands.report:Show",
    "report": "experiments.commands.report:Report",
    "measure": "experiments.commands.measure:Measure",
    "noise": "experiments.commands.noise:ShowNoise",
    "datasets": "experiments.commands.datasets:Datasets",
    "doctor": "experiments.commands.doctor:Doctor",
    "bench": "",
}

#: Options that may be given more than once.
REPEATABLE = ("--vary",)

#: Where a shell's completion script goes in the home folder, and what is left to do.
SHELLS = {
    "bash": (".local/share/bash-completion/completions/mcr2", "new shells complete mcr2"),
    "zsh": (".zfunc/_mcr2", "put `fpath+=~/.zfunc; autoload -Uz compinit; compinit` into ~/.zshrc"),
    "tcsh": (".mcr2-completion.tcsh", "put `source ~/.mcr2-completion.tcsh` into ~/.tcshrc"),
}


def find_command(name: str) -> type[Any]:
    """Return the class of a command of :data:`COMMANDS`."""
    module, _, attribute = COMMANDS[name].partition(":")
    found: type[Any] = getattr(importlib.import_module(module), attribute)
    return found


#: What ``mcr2`` alone prints.
WELCOME = """\
mcr2: what a network's representation looks like when some of its labels are wrong

  mcr2 doctor                     is everything here?
  mcr2 table                      train cross-entropy and MCR² on digits with wrong labels
  mcr2 show results/quick-digits  its tables again; mcr2 report writes a page to browse
  mcr2 table --methods ce loss.py:Mine
                                  the same with a loss of your own
  mcr2 --help                     every command; mcr2 COMMAND --help its options
"""


def guide() -> str:
    """Return what ``mcr2 --help`` prints: every command in a line."""
    lines = ["usage: mcr2 COMMAND [OPTIONS]    (mcr2 COMMAND --help lists the options)", ""]
    groups = {
        "study": "Run a study by its name; without one, list them.",
        "bench": "Measure what something costs here; without a name, list the benchmarks.",
    }
    for name in COMMANDS:
        lines.append(f"  {name:10} {groups.get(name) or _about(find_command(name))}")
    options = {
        "--version": "Print the version.",
        "--install-completion SHELL": f"Set up completion for {', '.join(SHELLS)}.",
    }
    return "\n".join([*lines, "", *(f"  {o:27} {about}" for o, about in options.items())])


def _members(group: str) -> dict[str, Any]:
    """Return the commands of a group by name."""
    if group == "study":
        from experiments.studies import STUDIES, find_study

        return {name: find_study(name) for name in STUDIES}
    from experiments.bench import BENCHES

    return dict(BENCHES)


def _about(kind: type[Any]) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _group_guide(group: str) -> str:
    """Return what ``mcr2 study`` and ``mcr2 bench`` print: their members, one in a line."""
    members = _members(group)
    wide = max(map(len, members))
    lines = [f"  {name:{wide}}  {_about(kind)}" for name, kind in members.items()]
    own = ["", "or mcr2 study path/to/file.py:NAME for one of your own"] * (group == "study")
    return "\n".join([f"usage: mcr2 {group} NAME [OPTIONS]", "", *lines, *own])


def _find(name: str, rest: list[str]) -> tuple[type[Any], str, list[str]]:
    """Return a command's class, what it is called, and the arguments that are left for it."""
    if name not in COMMANDS:
        raise ValueError(f"unknown command {name!r}; choose from {', '.join(COMMANDS)}")
    if COMMANDS[name]:
        return find_command(name), f"mcr2 {name}", rest
    if not rest or rest[0] in ("-h", "--help"):
        raise _printed(_group_guide(name))
    from experiments.bench import BENCHES
    from experiments.studies import find_study

    member, *rest = rest
    if name == "bench" and member not in BENCHES:
        raise ValueError(f"unknown benchmark {member!r}; choose from {', '.join(BENCHES)}")
    return BENCHES[member] if name == "bench" else find_study(member), f"mcr2 {name} {member}", rest


def install_completion(arguments: Sequence[str]) -> str:
    """Write a completion script where the shell looks for it, and return what to do next."""
    from pathlib import Path

    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise ValueError(f"--install-completion takes one of {', '.join(SHELLS)}")
    (shell,) = arguments
    file, how = SHELLS[shell]
    place = Path.home() / file
    place.parent.mkdir(parents=True, exist_ok=True)
    commands: dict[str, Any] = {}
    for name, where in COMMANDS.items():
        members = {} if where else _members(name)
        commands |= {f"{name} {member}": kind for member, kind in members.items()}
        commands |= {name: find_command(name)} if where else {}
    with contextlib.suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(
            commands, prog="mcr2", args=["--tyro-write-completion", shell, str(place)]
        )
    return f"{place}: {how}"


def _one_line(boxed: str) -> str:
    """Return the line that names the problem, of tyro's boxed message (in Unicode or ASCII)."""
    rows = [row.strip("│╰╯ ") for row in boxed.splitlines()]
    # The title is in the box's edge, or in ASCII a row of its own above a rule.
    rows = rows[1:] if rows[0].startswith("╭") else rows[2:]
    problem, *hints = [" ".join(b.split()) for b in re.split(r"[─-]{4,}", "\n".join(rows))]
    # What follows are the attempts to read a value as each of its types.
    lines = [problem.partition(" Got errors:")[0].replace("{None}|", "")]
    for hint in hints:
        if hint.startswith("Available"):
            lines.append(hint)
        if hint.startswith("Perhaps") and (option := re.search(r"--[\w-]+", hint)):
            lines.append(f"perhaps you meant {option[0]}")
    return "; ".join(lines)


def _printed(text: str) -> SystemExit:
    print(text, flush=True)
    return SystemExit(0)


def _call(action: Callable[[], R]) -> R:
    """Call what may run a user's code: where that exits, it has failed like any other."""
    try:
        return action()
    except SystemExit as error:
        raise RuntimeError(f"code of your own called sys.exit({error.code!r})") from error


def _is_unread() -> bool:
    """Whether nobody reads standard output; if so, what is left of it goes nowhere."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # that its other end is closed is always told
    unread = bool(poll.poll(0))
    if unread:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return unread


def parse(arguments: Sequence[str]) -> Any:
    """Return the command that the arguments ask for.

    Raises:
        ValueError: arguments that make none, in one line.
        SystemExit: with status 0, after help was printed.
    """
    if not arguments:
        raise _printed(WELCOME.rstrip())
    name, *rest = arguments
    if name in ("-h", "--help"):
        raise _printed(guide())
    if name == "--version":
        from mcr2 import __version__

        raise _printed(f"mcr2 {__version__}")
    if name == "--install-completion":
        raise _printed(install_completion(rest))
    kind, prog, rest = _find(name, rest)
    # Of an option given twice, tyro would keep the last without a word.
    options = [a.partition("=")[0].replace("_", "-") for a in rest if a.startswith("--")]
    for option in options:
        if options.count(option) > 1 and option not in REPEATABLE:
            raise ValueError(f"{option} is given twice; give its values together, once")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            command = tyro.cli(kind, prog=prog, args=rest)
    except SystemExit as stop:
        if stop.code in (0, None):
            sys.stdout.flush()
            raise
        raise ValueError(_one_line(errors.getvalue())) from None
    for field in fields(command):
        optional = field.default is None or isinstance(field.default, tuple)
        if optional and getattr(command, field.name) == () != field.default:
            name = field.name.replace("_", "-")
            raise ValueError(f"--{name} is empty; give at least one value")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    begun = "nothing was begun"
    with STOP:
        try:
            go = _call(parse(sys.argv[1:] if arguments is None else arguments).prepare)
            begun = "the same command continues"
            status = int(_call(go))
            sys.stdout.flush()
            return status
        except Stopped as stopped:
            print(file=sys.stderr)  # behind the bar of a run
            warn(f"{stopped}; {begun}")
            return stopped.status
        # An ImportError is a data set's: torchvision that does not fit torch.
        except (ValueError, TypeError, OSError, ImportError) as error:
            if isinstance(error, BrokenPipeError) and _is_unread():  # mcr2 ... | head
                return UNREAD
            if begun == "nothing was begun":
                warn(error)
                return MISTAKE
            if not isinstance(error, OSError):
                raise
            warn(f"{error}; {begun}")  # a full disk, say
            return FAILED
