"""The table of verbs and their arguments that the magics, the command line and Tab all read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cloudshift_lab.core.maintenance import NODE_ACTIONS
from cloudshift_lab.core.run import RESTARTS

Kind = Literal[
    "text", "switch", "int", "number", "usd", "run", "target", "migration", "pairs", "interval",
    "step", "step or run", "job", "path", "runs", "rule", "targets",
    "share",
]  # fmt: skip


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

    With ``passes_on_first`` it does so where the first word is one of these. ``notes`` are lines
    that its help ends with.
    """

    name: str
    summary: str
    arguments: tuple[Argument, ...] = ()
    notes: tuple[str, ...] = ()
    passes_on: bool = False
    passes_on_first: frozenset[str] = frozenset()

    def is_for_others(self, words: Sequence[str]) -> bool:
        """Whether another room reads these words."""
        return self.passes_on or (bool(words) and words[0] in self.passes_on_first)

    def find(self, flag: str) -> Argument | None:
        """The flag called ``flag``, or None."""
        return next((item for item in self.arguments if item.name == flag), None)

    def flags(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.arguments if item.is_flag)

    def usage(self) -> str:
        """One line: the verb with its arguments, optional ones in brackets."""
        return " ".join([self.name, *(usage_word(item) for item in self.arguments)])


RUN = Argument("run", "run", "run id or name; left out: the only active run")
JSON = Argument("--json", "switch", "print JSON instead of text")
WAIT = Argument("--wait", "switch", "stay until it has ended; Ctrl-C only detaches")
STEP = Argument("step", "step", "a stored step; of the only run: @400 is enough", required=True)
MISSING = ("roll-back", "wait", "shrink", "elsewhere")
CLOSINGS = ("auto", "copy", "replay")
PLAYED = ("aws-sim", "gcp-sim")
MAINTENANCE = ("list", "ask", "show", "take", "done", "machine")
MACHINE_ACTIONS = tuple(action.replace(" ", "-") for action in NODE_ACTIONS)
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
            Argument("--ranks", "int", "processes of each node", 2),
            Argument("--nodes", "int", "machines", 1),
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
            Argument("--approve", "rule", "who approves moves: ask, auto, never, or a rule", "ask"),
            Argument(
                "--restart",
                "text",
                "whether it goes on by itself when ranks fail or its machine is gone",
                "auto",
                choices=RESTARTS,
            ),
            Argument("--restart-on", "targets", "where else it may then: CLOUD[:REGION],...", ()),
            Argument("--seed", "int", "seed of the run", 0),
            Argument("--env", "pairs", "environment of the script: K=V ..."),
            WAIT,
        ),
        (
            "Files are opened relative to the attempt's own folder: use absolute paths.",
            "A cell imports modules from the notebook's directory as it is when the run starts.",
            "A rule: --approve 'auto if price < 2.5/h and break-even < 4h and pause < 30s and at",
            "22:00-06:00 quiet 23:00-07:00 approvers 2 expires 30m', any part of which may be left",
            "out; in quiet hours nobody is asked.",
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
            Argument(
                "--to",
                "targets",
                "where to: CLOUD[:REGION]; A,B: B when A does not come up",
                required=True,
            ),
            Argument("--closing", "text", "how to close the last gap", "auto", CLOSINGS),
            Argument("--rehearse", "int", "steps to compute there and compare before the commit"),
            Argument(
                "--tolerance", "share", "how far rehearsed losses may be apart; 0: bit by bit"
            ),
            Argument(
                "--missing-nodes", "text", "what to do when nodes do not come up", None, MISSING
            ),
            Argument("--min-nodes", "int", "with shrink: how few are enough", 1),
            Argument("--approvals", "int", "how many people or policies must approve"),
            Argument("--limit", "usd", "most the move itself may cost, US dollars"),
            Argument(
                "--carrier",
                "text",
                "the target pulls the bytes, or the source pushes",
                "pull",
                ("pull", "push"),
            ),
            Argument("--expires", "number", "seconds until the plan expires"),
            Argument("--yes", "switch", "approve at once"),
            WAIT,
            JSON,
        ),
        (
            "closings: copy carries the last changed bytes; replay repeats the last steps at the",
            "target and proves the result by its hashes; auto takes the way in which the run",
            "stands still less, unless its first new step would come more than twice as late.",
            "--to A,B: B is tried when A does not come up and the policy for missing nodes is",
            "elsewhere, which it is then by default.",
        ),
    ),
    Verb("approve", "approve a proposed move", (Argument("migration", "migration", "which"),)),
    Verb("reject", "reject a proposed move", (Argument("migration", "migration", "which"),)),
    Verb(
        "receipt",
        "the receipts of a run's moves: forecast beside actual, chained by their digests",
        (RUN, Argument("--export", "path", "write them whole to this file (JSON)"), JSON),
        ("The chain is checked: an altered receipt, or one left out of the middle, is named.",),
    ),
    Verb(
        "notice",
        "say that a machine will be taken away, and see what can be saved by then",
        (
            Argument("run", "run", "run id or name (may be left out)"),
            Argument("seconds", "text", "until it goes: 30, 30s or 2m"),
            Argument("--side", "text", "whose machine", "source", ("source", "target")),
            JSON,
        ),
        (
            "What is typed here is a simulated notice: no provider takes the machine away, but run",
            "and move do what they would do.",
        ),
    ),
    Verb(
        "cost",
        "what a run has cost so far, what that went into, and what other ways would have cost",
        (
            RUN,
            Argument("--until", "int", "forecast the whole up to this step"),
            Argument("--budget", "usd", "most it may spend from now on, all in all, US dollars"),
            Argument("--export", "path", "write its ledger to this file (.csv or .parquet, FOCUS)"),
            JSON,
        ),
        (
            "At 50, 80 and 100 % of its budget it says so; before its end it saves and stops.",
            "Other ways: never moved, always cheapest, perfect foresight, at the recorded prices.",
        ),
    ),
    Verb(
        "health",
        "what its detectors find about a run, with evidence and what to do",
        (RUN, JSON),
        (
            "While the conductor runs it looks at every run once a second and keeps what it finds.",
            "Findings without proof only ask: nothing is done about them by itself.",
            "health evaluate --data DIR judges the rules on labelled data, health replay --trace",
            "CSV replays a real fault trace; a run that is called so is asked for by its id.",
        ),
        passes_on_first=frozenset({"evaluate", "replay"}),
    ),
    Verb(
        "goodput",
        "what a run's time went into, by cause, and what is to be expected",
        (RUN, JSON),
        ("Expected: the validated formula, from what this run has shown and assumed failures.",),
    ),
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
    Verb(
        "maintenance",
        "what is to be done to machines: ask for it, take it on, say it is done",
        (
            Argument("action", "text", "what", "list", MAINTENANCE),
            Argument("name", "text", "a request (show, take, done) or a machine (ask, machine)"),
            Argument("--do", "text", "ask: what is to be done", "look-at", MACHINE_ACTIONS),
            Argument("--words", "text", "ask: what happened; done: what was done"),
            Argument("--run", "run", "ask: the run that met it"),
            Argument("--within", "text", "ask: until when it presses: 30m, 4h, 2d"),
            JSON,
        ),
        (
            "Until a drain, reset, reboot or replacement is done, nothing new starts on that",
            "machine. Requests never change; a file of each is kept, and automation.json may name",
            "a webhook. machine NAME shows everything that happened to a machine.",
        ),
    ),
    Verb("dashboard", "live dashboard", (RUN,)),
    Verb("doctor", "check this installation and say what to mend", (JSON,)),
    Verb(
        "clouds",
        "the simulated clouds of this machine",
        (
            Argument("action", "text", "what to do", "status", ("up", "down", "status", "preempt")),
            Argument(
                "cloud", "text", "preempt: whose machines are taken away (simulated)", None, PLAYED
            ),
            Argument("--in", "text", "preempt: until they go: 30, 30s or 2m", "120"),
            Argument("--run", "run", "preempt: only this run's machines"),
            Argument("--kill", "switch", "preempt: then end what runs there; else it is spared"),
            Argument("--force", "switch", "down, although active runs lose what they have there"),
        ),
        (
            "preempt is a rehearsal: an emulator on this machine tells agents of their end as the",
            "provider would: AWS two minutes before, Google 30 seconds. Nobody else is asked.",
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
    Verb(
        "market",
        "prices, what to do about them, and how good such advice has been",
        passes_on=True,
    ),
    Verb("chaos", "kill real processes while a real run moves, then judge", passes_on=True),
    Verb("help", "this list", (Argument("topic", "text", "a verb"),)),
)
_BY_NAME = {verb.name: verb for verb in VERBS}


def verb_names() -> tuple[str, ...]:
    """All verbs in the order in which help lists them."""
    return tuple(_BY_NAME)


def find_verb(name: str) -> Verb | None:
    """The verb called ``name``, or None."""
    return _BY_NAME.get(name)


def usage_word(item: Argument) -> str:
    """An argument as usage shows it: ``[--name NAME]``."""
    value = "|".join(item.choices) or _METAVAR.get(item.kind, item.name.strip("-").upper())
    word = f"{item.name} {value}".strip() if item.is_flag else value
    return word if item.required else f"[{word}]"


_METAVAR = {
    "switch": "", "run": "RUN", "target": "TARGET", "migration": "MIGRATION", "usd": "USD",
    "pairs": "K=V ...", "int": "N", "number": "S", "interval": "N|TIME|auto", "step": "RUN@STEP",
    "step or run": "RUN[@STEP]", "job": "JOB", "path": "PATH",
    "runs": "RUN ...", "rule": "RULE", "targets": "TARGET[,TARGET]",
}  # fmt: skip
