"""What Tab offers: pure functions over a cached catalogue, never a network call."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cloudshift_lab.lab.vocabulary import VERBS, Argument, Verb, find_verb, verb_names

_MAGIC = re.compile(r"^\s*(?:[\w.,\s]+=\s*)?(%{1,2})cloudshift(\s.*)?$", re.DOTALL)


@dataclass(frozen=True)
class Catalogue:
    """Names that existed when somebody last looked.

    ``steps`` are those known of each run, by its name and by its id, newest first.
    """

    runs: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    migrations: tuple[str, ...] = ()
    steps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    jobs: tuple[str, ...] = ()

    def refs(self) -> tuple[str, ...]:
        """Every step as it is typed, the newest of each run also by that word."""
        return tuple(
            f"{run}@{step}" for run in self.runs for step in ("latest", *self.steps.get(run, ()))
        )


@dataclass(frozen=True)
class Offer:
    """What could stand in place of ``fragment``, the part of a word before the cursor."""

    fragment: str
    words: tuple[str, ...]


def complete(before_cursor: str, catalogue: Catalogue) -> Offer | None:
    """Completions for a line up to the cursor; None when it is no ``%cloudshift`` line."""
    found = _MAGIC.match(before_cursor)
    if found is None or found.group(2) is None:
        return None
    words = found.group(2).split()
    fragment = "" if found.group(2)[-1:].isspace() or not words else words.pop()
    known = _candidates(words, fragment, catalogue, cell=found.group(1) == "%%")
    return Offer(fragment, tuple(word for word in known if word.startswith(fragment)))


def _candidates(
    words: list[str], fragment: str, catalogue: Catalogue, *, cell: bool
) -> tuple[str, ...]:
    if not words:
        return ("train",) if cell else verb_names()
    verb = find_verb(words[0])
    if verb is None:
        return ()
    flag = verb.find(words[-1]) if words[-1].startswith("--") else None
    if flag is not None and flag.kind != "switch":
        return _values(flag, catalogue)
    listed = next((verb.find(word) for word in reversed(words) if word.startswith("--")), None)
    if listed is not None and listed.kind == "runs" and not fragment.startswith("-"):
        return tuple(run for run in catalogue.runs if run not in words)
    if fragment.startswith("-"):
        return tuple(flag for flag in verb.flags() if flag not in words)
    return (*_positionals(verb, words[1:], catalogue), *_unused_flags(verb, words, fragment))


def _unused_flags(verb: Verb, words: list[str], fragment: str) -> tuple[str, ...]:
    return () if fragment else tuple(flag for flag in verb.flags() if flag not in words)


def _positionals(verb: Verb, given: list[str], catalogue: Catalogue) -> tuple[str, ...]:
    """Values of the first positional that has none yet."""
    positionals = [item for item in verb.arguments if not item.is_flag]
    taken = 0
    skip = False
    for word in given:
        flag = verb.find(word)
        if flag is not None:
            skip = flag.kind != "switch"
        elif skip:
            skip = False
        else:
            taken += 1
    return _values(positionals[taken], catalogue) if taken < len(positionals) else ()


def _values(item: Argument, catalogue: Catalogue) -> tuple[str, ...]:
    if item.choices:
        return item.choices
    if item.name == "topic":
        return tuple(verb.name for verb in VERBS)
    known: dict[str, tuple[str, ...]] = {
        "run": catalogue.runs,
        "runs": catalogue.runs,
        "target": catalogue.targets,
        "targets": catalogue.targets,
        "rule": ("ask", "auto", "never"),
        "migration": catalogue.migrations,
        "job": catalogue.jobs,
    }
    if item.kind == "step":
        return catalogue.refs()
    if item.kind == "step or run":
        return (*catalogue.runs, *catalogue.refs())
    return known.get(item.kind, ())
