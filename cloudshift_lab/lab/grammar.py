"""What can be typed: one table of verbs that the magics, the command line and Tab all read."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.save_policy import parse_save_policy

Kind = Literal[
    "text", "switch", "int", "number", "usd", "run", "target", "migration", "pairs", "interval",
    "step", "step or run", "job", "path", "runs",
]  # fmt: skip
Surface = Literal["line", "cell", "terminal"]
_COMMENT = re.compile(r"(?:^|(?<=\s))#")


@dataclass(frozen=True)
class Argument:
    """One flag (``--to``) or positional (``run``) of a verb.

    ``kind`` says what it holds, and so what Tab offers for it.
    """

    name: str
    kind: Kind
    help: str
    default: object = None
    choices: tuple[str, ...] = ()
    required: bool = False

    @property
    def is_flag(self) -> bool:
        return self.name.startswith("--")


@dataclass(frozen=True)
class Verb:
    """One thing that can be asked for; with ``passes_on`` another room reads its words.

    ``notes`` are lines that its help ends with.
    """

    name: str
    summary: str
    arguments: tuple[Argument, ...] = ()
    notes: tuple[str, ...] = ()
    passes_on: bool = False

    def find(self, flag: str) -> Argument | None:
        """The flag called ``flag``, or None."""
        return next((item for item in self.arguments if item.name == flag), None)

    def flags(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.arguments if item.is_flag)

    def usage(self) -> str:
        """One line: the verb with its arguments, optional ones in brackets."""
        return " ".join([self.name, *(_usage_word(item) for item in self.arguments)])


@dataclass(frozen=True)
class Call:
    """A parsed line: the verb, its arguments, and words meant for somebody else."""

    verb: Verb
    args: argparse.Namespace
    rest: tuple[str, ...] = ()


RUN = Argument("run", "run", "run id or name; left out: the only active run")
JSON = Argument("--json", "switch", "print JSON instead of text")
WAIT = Argument("--wait", "switch", "stay until it has ended; Ctrl-C only detaches")
STEP = Argument("step", "step", "a stored step; of the only run: @400 is enough", required=True)
APPROVE = ("ask", "auto", "never")
FORMATS = ("safetensors", "dcp", "state_dict", "npz")

VERBS: tuple[Verb, ...] = (
    Verb("status", "every run, where it is, what it costs, what waits for you", (RUN, JSON)),
    Verb(
        "train",
        "start a training script (a cell's body, or a file in a terminal)",
        (
            Argument("script", "text", "file to run (terminal only; in a notebook: the cell)"),
            Argument("--name", "text", "what to call the run"),
            Argument("--on", "target", "where to start: CLOUD[:REGION]", "local"),
            Argument("--ranks", "int", "processes", 2),
            Argument(
                "--checkpoint-every",
                "interval",
                "steps between checkpoints, or a time (5m)",
                "auto",
            ),
            Argument(
                "--keep",
                "text",
                "checkpoints that stay: 5, 5,every=1000, 5,best=2 (the two of least loss) or all",
                "5",
            ),
            Argument("--budget", "usd", "most it may spend, US dollars"),
            Argument("--approve", "text", "who approves moves", "ask", APPROVE),
            Argument("--seed", "int", "seed of the run", 0),
            Argument("--env", "pairs", "environment of the script: K=V ..."),
            WAIT,
        ),
        (
            "Files are opened relative to the attempt's own folder: use absolute paths.",
            "A cell imports modules from the notebook's directory as it is when the run starts.",
            "Values of --env are stored in private files of this machine: pass a secret by",
            "reference (the path of the file that holds it), not by value.",
        ),
    ),
    Verb("watch", "live card of a run", (RUN,)),
    Verb(
        "migrate",
        "plan a move with its bill, and ask for approval",
        (
            RUN,
            Argument("--to", "target", "where to: CLOUD[:REGION]", required=True),
            Argument("--expires", "number", "seconds until the plan expires", 600.0),
            Argument("--yes", "switch", "approve at once"),
            WAIT,
            JSON,
        ),
    ),
    Verb("approve", "approve a proposed move", (Argument("migration", "migration", "which"),)),
    Verb("reject", "reject a proposed move", (Argument("migration", "migration", "which"),)),
    Verb("cost", "what a run has cost so far, line by line", (RUN, JSON)),
    Verb(
        "logs",
        "what the ranks printed (all of them, each line with its rank)",
        (
            RUN,
            Argument("--rank", "int", "one rank only"),
            Argument("--tail", "int", "last lines", 40),
        ),
    ),
    Verb("stop", "checkpoint and stop a run", (RUN,)),
    Verb("resume", "continue a stopped, failed or lost run from its last checkpoint", (RUN,)),
    Verb(
        "log",
        "the stored steps of a run: when, how large, what is new in each, where",
        (RUN, Argument("--last", "int", "newest steps; 0: all", 20), JSON),
        ("Steps of a run that moved are listed with the cloud that still holds them.",),
    ),
    Verb(
        "diff",
        "what changed between two stored steps, tensor by tensor",
        (
            Argument("first", "step", "the earlier step (or RUN A B)", required=True),
            Argument(
                "second",
                "step",
                "the later step; of the same run: its number is enough",
                required=True,
            ),
            Argument("step", "text", "the later step after RUN A"),
            Argument("--top", "int", "tensors to list; 0: all", 15),
            JSON,
        ),
        ("Only chunks that differ are read. Steps of any runs and world sizes can be compared.",),
    ),
    Verb(
        "branch",
        "a new run from a stored step; it shares all stored chunks",
        (
            STEP,
            Argument("--name", "text", "what to call it (default RUN-STEP)"),
            Argument("--seed", "int", "another seed than the parent's"),
            Argument("--on", "target", "another region of the same cloud"),
        ),
        ("Script, ranks, budget and environment are the parent's.",),
    ),
    Verb(
        "restore",
        "write a stored step to a file or folder",
        (
            STEP,
            Argument("--to", "path", "file or folder to write", required=True),
            Argument("--format", "text", "by the file's ending, else safetensors", None, FORMATS),
            JSON,
        ),
    ),
    Verb(
        "verify",
        "prove that stored steps are whole",
        (
            Argument("step", "step or run", "one step, or a run: all of its steps"),
            Argument("--quick", "switch", "stored hashes only, decode nothing"),
            JSON,
        ),
    ),
    Verb(
        "repair",
        "heal damaged steps from other copies, and say what is lost",
        (RUN, Argument("--dry-run", "switch", "only say what could be healed"), JSON),
        ("Copies are looked for in the run's other packs and in the clouds it has been in.",),
    ),
    Verb(
        "du",
        "what runs and steps take up in the stores",
        (
            Argument("run", "run", "one run, step by step; left out: all"),
            JSON,
        ),
    ),
    Verb(
        "gc",
        "collect what no stored step needs any more",
        (
            Argument("run", "run", "only the stores this run was in; left out: all"),
            Argument("--dry-run", "switch", "only say what is garbage"),
            Argument("--now", "switch", "delete at once; running saves may have to repeat"),
            Argument("--without", "runs", "ended runs whose unreadable steps are given up"),
            JSON,
        ),
        (
            "Garbage is marked first and deleted by a collection an hour later, or with --now.",
            "A step that cannot be read stops it. With --without RUN it goes on: of such a step of",
            "RUN only what its records name is kept; try repair first. Name RUN each time.",
            "A lost RUN stops owning its log then: its agent, if it wakes, cannot save any more.",
        ),
    ),
    Verb(
        "pin",
        "keep a stored step until it is unpinned, whatever --keep says",
        (STEP, Argument("--name", "text", "what to call the pin (default RUN-STEP)"), JSON),
    ),
    Verb(
        "unpin",
        "take out the pins of a stored step",
        (STEP, Argument("--name", "text", "this pin only"), JSON),
    ),
    Verb(
        "forget",
        "drop a stored step; a collection takes what only it needs",
        (STEP, JSON),
        ("Never the newest step of a run, nor a pinned one. There is no way back.",),
    ),
    Verb(
        "jobs",
        "long work of the conductor: list it, wait for one, or cancel it",
        (
            Argument("job", "job", "wait for this one and show what it gives"),
            Argument("--cancel", "switch", "end it"),
            JSON,
        ),
    ),
    Verb("dashboard", "live dashboard", (RUN,)),
    Verb("doctor", "check this installation and say what to mend", (JSON,)),
    Verb(
        "clouds",
        "the simulated clouds of this machine",
        (
            Argument("action", "text", "what to do", "status", ("up", "down", "status")),
            Argument("--force", "switch", "down, although active runs lose what they have there"),
        ),
    ),
    Verb(
        "conductor",
        "the daemon that drives runs and moves",
        (Argument("action", "text", "what to do", "status", ("start", "stop", "status")),),
    ),
    Verb("demo", "the whole story without a browser", passes_on=True),
    Verb("sim", "thousands of simulated histories with injected faults", passes_on=True),
    Verb("bench", "measure against what people use today", passes_on=True),
    Verb("help", "this list", (Argument("topic", "text", "a verb"),)),
)
_BY_NAME = {verb.name: verb for verb in VERBS}


def verb_names() -> tuple[str, ...]:
    """All verbs in the order in which help lists them."""
    return tuple(_BY_NAME)


def find_verb(name: str) -> Verb | None:
    """The verb called ``name``, or None."""
    return _BY_NAME.get(name)


def parse_line(line: str, *, surface: Surface = "line") -> Call:
    """Parse what follows ``%cloudshift`` (or ``%%cloudshift``); an empty line means ``status``.

    Raises:
        UsageError: Unknown verb or flag, or a value that does not fit; says what would.
    """
    try:
        words = shlex.split(_without_comment(line))
    except ValueError as error:
        raise UsageError(f"the line has an unclosed quote ({error}); close it") from error
    return parse_words(words, surface=surface)


def _without_comment(line: str) -> str:
    """The line up to a ``#`` that stands as a word outside quotes, as in Python."""
    for mark in _COMMENT.finditer(line):
        before = line[: mark.start()]
        try:
            shlex.split(before)
        except ValueError:
            continue  # inside quotes
        return before
    return line


def parse_words(words: Sequence[str], *, surface: Surface) -> Call:
    """Parse a command line that is already split into words.

    Raises:
        UsageError: As :func:`parse_line`.
    """
    name, *rest = list(words) or ["train" if surface == "cell" else "status"]
    if name in ("-h", "--help"):
        name, rest = "help", []
    verb = _BY_NAME.get(name)
    if verb is None:
        raise _no_such_verb(name)
    if surface == "cell" and name != "train":
        raise UsageError(f"'%%cloudshift {name}' takes no cell; use '%cloudshift {name}'")
    if {"-h", "--help"} & set(rest) and not verb.passes_on:
        verb, rest = _BY_NAME["help"], [name]
    if verb.passes_on:
        return Call(verb, argparse.Namespace(), tuple(rest))
    return Call(verb, _parse_arguments(verb, rest))


def help_text(topic: str | None, prompt: str) -> str:
    """The list of verbs, or one verb's arguments.

    Raises:
        UsageError: ``topic`` is no verb.
    """
    if topic is None:
        width = max(map(len, _BY_NAME))
        lines = [f"  {prompt} {verb.name:<{width}}  {verb.summary}" for verb in VERBS]
        return "\n".join(["What you can ask for (add a verb after 'help' for its flags):", *lines])
    verb = _BY_NAME.get(topic)
    if verb is None:
        raise _no_such_verb(topic)
    lines = [f"{prompt} {verb.usage()}", f"  {verb.summary}"]
    lines += [_help_line(item) for item in verb.arguments]
    return "\n".join(lines + [f"  {line}" for line in verb.notes])


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are ours: one line, no exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}; usage: {self.usage}")


def _parse_arguments(verb: Verb, words: list[str]) -> argparse.Namespace:
    parser = _Parser(
        usage=verb.usage(), add_help=False, allow_abbrev=False
    )  # fmt: skip
    for item in verb.arguments:
        _add(parser, item)
    args, unread = parser.parse_known_intermixed_args(words)
    if unread:
        word = unread[0].split("=")[0]
        what = f"'{verb.name}' has no flag '{word}'" if word.startswith("-") else (
            f"'{verb.name}' does not know what to do with '{word}'"
        )  # fmt: skip
        raise UsageError(f"{what}{_suggest(word, verb.flags())}; usage: {verb.usage()}")
    return args


def _add(parser: _Parser, item: Argument) -> None:
    name = item.name
    if item.kind == "switch":
        parser.add_argument(name, action="store_true")
    elif item.kind in ("pairs", "runs"):
        kind = _pair if item.kind == "pairs" else str
        parser.add_argument(name, nargs="+", action="extend", type=kind, default=[])
    elif item.is_flag:
        parser.add_argument(
            name,
            type=_TYPES.get(item.kind, str),
            default=item.default,
            choices=item.choices or None,
            required=item.required,
        )
    else:
        parser.add_argument(name, nargs="?", default=item.default, choices=item.choices or None)


def _pair(word: str) -> tuple[str, str]:
    key, sign, value = word.partition("=")
    if not sign or not key:
        raise argparse.ArgumentTypeError(f"'{word}' is not K=V")
    return key, value


def _whole(word: str) -> int:
    try:
        value = int(word)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"'{word}' is not a whole number of 0 or more")
    return value


def _positive(word: str) -> float:
    try:
        value = float(word.lstrip("$"))
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{word}' is not a number above 0")
    return value


def _interval(word: str) -> str:
    try:
        return str(parse_save_policy(word))
    except UsageError as error:
        raise argparse.ArgumentTypeError(error.message) from error


_TYPES = {"int": _whole, "number": _positive, "usd": _positive, "interval": _interval}


def _usage_word(item: Argument) -> str:
    value = "|".join(item.choices) or _METAVAR.get(item.kind, item.name.strip("-").upper())
    word = f"{item.name} {value}".strip() if item.is_flag else value
    return word if item.required else f"[{word}]"


_METAVAR = {
    "switch": "", "run": "RUN", "target": "TARGET", "migration": "MIGRATION", "usd": "USD",
    "pairs": "K=V ...", "int": "N", "number": "S", "interval": "N|TIME|auto", "step": "RUN@STEP",
    "step or run": "RUN[@STEP]", "job": "JOB", "path": "PATH",
    "runs": "RUN ...",
}  # fmt: skip


def _help_line(item: Argument) -> str:
    default = "" if item.default is None else f" (default {item.default})"
    return f"    {_usage_word(item):<28} {item.help}{default}"


def _suggest(word: str, known: Sequence[str] | dict[str, Verb]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f": did you mean '{close[0]}'?" if close else ""


def _no_such_verb(name: str) -> UsageError:
    advice = _suggest(name, _BY_NAME) or f"; choose one of: {', '.join(_BY_NAME)}"
    return UsageError(f"there is no '{name}'{advice}")
