"""What a backtracking matcher may try with a regular expression: a bound that is read from the pattern alone.

A pattern becomes paths. A path is one choice at every `|`, and lists the repetitions without a bound that are met on
it, in order. At one start a matcher tries at most a constant times the product of the stretches that these repetitions
can cover. Repetitions in repetitions, back-references and the like have no such bound, and are refused.
The syntax is Oniguruma's (Ruby's), which the `tokenizers` library compiles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

_LONGEST_PATTERN = 20_000  # characters; the longest public one has 3000
_MOST_PATHS = 512
_MOST_WAYS = 1 << 14
_MOST_COPIES = 4096  # of a bounded repetition's body, which the matcher writes out
_FEW = 16  # counts between least and most: up to here a bounded repetition is a constant, and not a stretch
_DEEPEST = 50
_BRACES = re.compile(r"\{(\d*)(,?)(\d*)\}")
_ESCAPE = re.compile(r"\\(?:[pP]\{[^}]*\}|x\{[0-9A-Fa-f ]+\}|x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{4}|c.|0[0-7]{0,2}|.)", re.S)
_ZERO_WIDTH = frozenset("bBAzZG")
_REFUSED_ESCAPES = {"k": "a back-reference", "g": "a call of a group", "C": "a control code", "M": "a meta code",
                    "X": "a grapheme", "K": "a kept part", "R": "a line break of any kind", "y": "a text segment",
                    "Y": "a text segment"}  # fmt: skip
_GROUP = re.compile(r"\?(?:(?P<look>=|!|<=|<!)|>|(?P<name><[A-Za-z_]\w*>|'[A-Za-z_]\w*')|(?P<flags>[im]*(?:-[im]*)?)"
                    r"(?P<end>[:)]))")  # fmt: skip


class UnboundedPatternError(ValueError):
    """A pattern whose time has no bound that this module knows; the message says what, and where in the pattern."""


@dataclass(frozen=True)
class Path:
    """One choice of alternatives. `stretches`: its repetitions without a bound, each as a pattern of what is repeated.
    `open_end`: nothing follows the last one, which therefore is never taken back. `ways`: how many divisions of a
    constant number of characters it stands for. `only_last`: why something behind it would take any time, or nothing.
    """

    stretches: tuple[str, ...] = ()
    open_end: bool = False
    ways: int = 1
    only_last: str = ""

    @property
    def retried(self) -> tuple[str, ...]:
        """Repetitions that a matcher may go back into."""
        return self.stretches[:-1] if self.open_end else self.stretches


@dataclass(frozen=True)
class Shape:
    """What a pattern or a part of it may try. `first`: the character that it must begin with, where there is one."""

    paths: tuple[Path, ...] = (Path(),)
    first: str = ""

    @property
    def bounded(self) -> bool:
        """Whether it covers a bounded number of characters."""
        return not any(path.stretches for path in self.paths)

    @property
    def ways(self) -> int:
        """Of all paths."""
        return sum(path.ways for path in self.paths)

    def then(self, other: Shape) -> Shape:
        """This, then `other`."""
        if len(self.paths) * len(other.paths) > _MOST_PATHS:
            raise UnboundedPatternError("too many alternatives")
        paths = [
            replace(two, stretches=one.stretches + two.stretches, ways=one.ways * two.ways)
            for one in self.paths
            for two in other.paths
        ]
        return Shape(_merged(paths), self.first)

    def closed(self) -> Shape:
        """With something behind it that may fail; UnboundedPatternError where that may take any time."""
        for path in self.paths:
            if path.only_last:
                raise UnboundedPatternError(path.only_last)
        return replace(self, paths=_merged([replace(path, open_end=False) for path in self.paths]))


def _merged(paths: Iterable[Path], exclusive: bool = False) -> tuple[Path, ...]:
    """Paths with the same repetitions as one; of `exclusive` ones only one can match."""
    ways: dict[Path, int] = {}
    for path in paths:
        key = replace(path, ways=1)
        ways[key] = max(ways.get(key, 0), path.ways) if exclusive else ways.get(key, 0) + path.ways
    if len(ways) > _MOST_PATHS or max(ways.values()) > _MOST_WAYS:
        raise UnboundedPatternError("too many alternatives")
    return tuple(replace(path, ways=count) for path, count in ways.items())


def shape_of(pattern: str) -> Shape:
    """The shape of a whole pattern; UnboundedPatternError where its time has no bound."""
    if len(pattern) > _LONGEST_PATTERN:
        raise UnboundedPatternError(f"{len(pattern)} characters, more than {_LONGEST_PATTERN}")
    parser = _Parser(pattern)
    shape, _ = parser.alternatives("", 0)
    if parser.position < len(pattern):
        raise UnboundedPatternError(f"an unpaired ) at character {parser.position}")
    return shape


class _Parser:
    """One pass over a pattern. Methods leave `position` behind what they have read."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.position = pattern, 0

    def alternatives(self, flags: str, depth: int) -> tuple[Shape, int]:
        """Up to the end or an unpaired `)`; the shape, and how many characters it is written out to."""
        if depth > _DEEPEST:
            raise self._refused(f"groups deeper than {_DEEPEST}")
        branches, copies = [], 0
        while True:
            shape, more = self._sequence(flags, depth)
            branches.append(shape)
            copies += more
            if not self._take("|"):
                break
        if len(branches) == 1:
            return shape, copies
        firsts = [branch.first for branch in branches]
        exclusive = all(firsts) and len(set(firsts)) == len(firsts)
        return Shape(_merged([path for branch in branches for path in branch.paths], exclusive)), copies

    def _sequence(self, flags: str, depth: int) -> tuple[Shape, int]:
        shape, copies, begun = Shape(), 0, False
        while self.position < len(self.pattern) and self.pattern[self.position] not in "|)":
            start = self.position
            part, written = self._item(flags, depth)
            part, written = self._repeated(part, written, start, flags)
            shape = shape.closed().then(part) if begun else part
            copies, begun = copies + written, True
        return shape, copies

    def _item(self, flags: str, depth: int) -> tuple[Shape, int]:
        """A character, a class, or a group."""
        character = self.pattern[self.position]
        if character == "(":
            return self._group(flags, depth)
        if character in "*+?":
            raise self._refused("a repetition of nothing")
        if character == "[":
            self._class()
        elif character == "\\":
            self._escape()
        else:
            self.position += 1
            if character not in ".^$" and "i" not in flags:
                return Shape(first=character), 1
        return Shape(), 1

    def _escape(self) -> None:
        found = _ESCAPE.match(self.pattern, self.position)
        if found is None:
            raise self._refused("a backslash at the end")
        letter = found[0][1]
        if letter in _REFUSED_ESCAPES:
            raise self._refused(_REFUSED_ESCAPES[letter])
        if letter in "123456789":
            raise self._refused("a back-reference")
        self.position = found.end()

    def _class(self) -> None:
        """Past a class with the classes in it."""
        start, open_classes = self.position, 0
        while self.position < len(self.pattern):
            character = self.pattern[self.position]
            if character == "\\":
                self._escape()
                continue
            self.position += 1
            if character == "[":
                open_classes += 1
                self._take("^")
                self._take("]")  # which stands for itself there
            elif character == "]":
                open_classes -= 1
                if not open_classes:
                    return
        self.position = start
        raise self._refused("a class without an end")

    def _group(self, flags: str, depth: int) -> tuple[Shape, int]:
        start = self.position
        self.position += 1
        found = _GROUP.match(self.pattern, self.position)
        if found is None and self.pattern[self.position : self.position + 1] == "?":
            self.position = start
            raise self._refused(f"the group {self.pattern[start : start + 4]!r}")
        if found is not None:
            self.position = found.end()
            if found["end"]:
                flags = _flags(flags, found["flags"])
        shape, copies = self.alternatives(flags, depth + 1)
        if found is not None and found["end"] == ")":  # holds for all that follows in the group, `|` included
            return shape, copies
        if not self._take(")"):
            self.position = start
            raise self._refused("a group without an end")
        look = found["look"] if found else None
        if look and look.startswith("<") and not shape.bounded:
            self.position = start
            raise self._refused("a look-behind without a bound")
        # What a look-around has matched is of no use where it must not match, or where what follows does not.
        return (replace(shape.closed(), first="") if look else shape), copies

    def _repeated(self, part: Shape, copies: int, start: int, flags: str) -> tuple[Shape, int]:
        """What begins at `start` with the quantifiers that follow."""
        while True:
            body = self.pattern[start : self.position]
            if (counts := self._quantifier()) is None:
                break
            least, most = counts
            part = self._quantified(part, least, most, f"(?{flags}:{body})")
            copies *= max(least, most or 1)
            if copies > _MOST_COPIES:
                raise self._refused(f"a repetition written out to more than {_MOST_COPIES} characters")
        return part, copies

    def _quantified(self, part: Shape, least: int, most: int | None, body: str) -> Shape:
        first = part.first if least else ""
        if most is not None and most <= 1:
            return Shape(_merged((*part.paths, Path()) if least == 0 else part.paths), first)
        if not part.bounded:
            raise self._refused("a repetition in a repetition")
        if most is not None and most - least <= _FEW:
            ways = sum(min(part.ways**count, 2 * _MOST_WAYS) for count in range(least, most + 1))
            return Shape(_merged([Path(ways=ways)]), first)
        several = "a repetition of what may match in several ways"
        if part.ways == 1:
            return Shape((Path((body,), open_end=True),), first)
        if least > _FEW:
            raise self._refused(several)
        # The first way is taken, and as the last of a pattern never taken back.
        ways = min(part.ways ** max(least, 1), 2 * _MOST_WAYS)
        return Shape(_merged([Path((body,), True, ways, f"{several} at character {self.position}")]), first)

    def _quantifier(self) -> tuple[int, int | None] | None:
        """(least, most) of a quantifier, with the `?` or `+` that makes it lazy or possessive; None where none is."""
        character = self.pattern[self.position : self.position + 1]
        if character in ("*", "+", "?"):
            self.position += 1
            if not self._take("+"):  # possessive; or lazy
                self._take("?")
            return (1 if character == "+" else 0), (1 if character == "?" else None)
        found = _BRACES.match(self.pattern, self.position)
        if found is None or not (found[1] or found[3]):
            return None
        self.position = found.end()
        if found[2]:  # after one number a ? is another repetition, and a + always is
            self._take("?")
        if len(found[1]) > 6 or len(found[3]) > 6:
            raise self._refused("a count of more than six digits")
        least = int(found[1] or 0)
        most = int(found[3]) if found[3] else None if found[2] else least
        return (least, most) if most is None or most >= least else (most, least)

    def _take(self, character: str) -> bool:
        taken = self.pattern[self.position : self.position + 1] == character
        self.position += taken
        return taken

    def _refused(self, what: str) -> UnboundedPatternError:
        return UnboundedPatternError(f"{what} at character {self.position}")


def _flags(before: str, changed: str) -> str:
    on, _, off = changed.partition("-")
    return "".join(flag for flag in "im" if flag in on or (flag in before and flag not in off))
