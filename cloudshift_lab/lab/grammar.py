"""Reading what was typed: a line or words become a verb with its arguments, or one clear error."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from cloudshift_lab.core.approval import parse as parse_approval
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.save_policy import parse_save_policy
from cloudshift_lab.lab.vocabulary import VERBS, Argument, Verb, find_verb, usage_word, verb_names

Surface = Literal["line", "cell", "terminal"]
_COMMENT = re.compile(r"(?:^|(?<=\s))#")


@dataclass(frozen=True)
class Call:
    """A parsed line: the verb with its arguments, or the words as they are for another room."""

    verb: Verb
    args: argparse.Namespace
    rest: tuple[str, ...] = ()
    is_for_others: bool = False


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
    verb = find_verb(name)
    if verb is None:
        raise _no_such_verb(name)
    if surface == "cell" and name != "train":
        raise UsageError(f"'%%cloudshift {name}' takes no cell; use '%cloudshift {name}'")
    if verb.is_for_others(rest):
        return Call(verb, argparse.Namespace(), tuple(rest), is_for_others=True)
    if {"-h", "--help"} & set(rest):
        verb, rest = find_verb("help") or verb, [name]
    return Call(verb, _parse_arguments(verb, rest))


def help_text(topic: str | None, prompt: str) -> str:
    """The list of verbs, or one verb's arguments.

    Raises:
        UsageError: ``topic`` is no verb.
    """
    if topic is None:
        width = max(map(len, verb_names()))
        lines = [f"  {prompt} {verb.name:<{width}}  {verb.summary}" for verb in VERBS]
        return "\n".join(["What you can ask for (add a verb after 'help' for its flags):", *lines])
    verb = find_verb(topic)
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


def _share(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"'{word}' is not a number from 0 to below 1")
    return value


def _interval(word: str) -> str:
    try:
        return str(parse_save_policy(word))
    except UsageError as error:
        raise argparse.ArgumentTypeError(error.message) from error


def _rule(word: str) -> str:
    try:
        return str(parse_approval(word))
    except UsageError as error:
        raise argparse.ArgumentTypeError(error.message) from error


def _targets(word: str) -> tuple[str, ...]:
    places = tuple(place.strip() for place in word.split(","))
    if not all(places):
        raise argparse.ArgumentTypeError(f"'{word}' names an empty place; write A or A,B")
    return places


_TYPES = {
    "int": _whole, "number": _positive, "usd": _positive, "interval": _interval, "rule": _rule,
    "targets": _targets, "share": _share,
}  # fmt: skip


def _help_line(item: Argument) -> str:
    default = "" if item.default is None else f" (default {item.default})"
    return f"    {usage_word(item):<28} {item.help}{default}"


def _suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f": did you mean '{close[0]}'?" if close else ""


def _no_such_verb(name: str) -> UsageError:
    advice = _suggest(name, verb_names()) or f"; choose one of: {', '.join(verb_names())}"
    return UsageError(f"there is no '{name}'{advice}")
