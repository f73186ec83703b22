"""Reading a change request: plain rules for the handful of changes that the template runner knows.

A request is a list of clauses ("make it green, dark mode and add a due date"). All of them must be
understood, else nothing is done: a half-done change would be worse than a clear answer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from generator.errors import RunnerFailed
from generator.runners import goal as goals
from generator.runners.colours import HEX, NAMED, Accent, accent

MAX_LABEL_CHARS = 40
MAX_CLAUSES = 20

UNDERSTOOD = (
    "a name (“call it Lunch Club”, “rename it to …”)",
    "a colour (“make it green”, “use #0f766e”)",
    "“dark mode”, “light mode” or “follow the system”",
    "further fields (“add a due date”, “add a phone number”, “add a … field”)",
)


@dataclass(frozen=True, slots=True)
class Rename:
    """Give the app another name."""

    name: str


@dataclass(frozen=True, slots=True)
class Recolour:
    """Give it another accent."""

    accent: Accent


@dataclass(frozen=True, slots=True)
class Scheme:
    """Make it dark or light; `value` is CSS's `color-scheme`."""

    value: str


@dataclass(frozen=True, slots=True)
class AddField:
    """Give its entries a further field."""

    name: str
    label: str
    kind: str
    choices: tuple[str, ...] = ()


Change = Rename | Recolour | Scheme | AddField

_POLITE = re.compile(
    r"(?i)^(?:(?:please|now|then|also|and|just|but|can you|could you|would you|i want you to"
    r"|i(?:'d| would) like (?:you )?to|let'?s|we want to|i want to)[,\s]+)+"
)
_QUOTED = re.compile(r"[\"“«]([^\"”»\n]{1,80})[\"”»]|(?<!\w)'([^'\n]{1,80})'(?!\w)")
_HELD = re.compile("\ue000([0-9]+)\ue001")
_BETWEEN = re.compile(r"(?i)(?:[.;!](?=\s|$)|[,\n]|\s(?:and|plus|then|&)\s)\s*")
_APP = (
    r"(?:it|this|that|(?:the|my|our|this)\s(?:whole\s)?(?:\w+\s)?"
    r"(?:app|page|list|poll|site|website|notebook|journal|one)|everything)"
)
_RENAME = re.compile(
    rf"(?i)^(?:(?:re)?name\s{_APP}\s(?:in)?to\s|(?:re)?name\s{_APP}\s(?:as\s)?|rename\sto\s"
    rf"|(?:call|title)\s{_APP}\s|(?:change|set)\s(?:the|its)\s(?:name|title)\s(?:in)?to\s"
    rf"|(?:the|its)\s(?:name|title)\s(?:should|shall|must)\s(?:be|read)\s"
    rf"|{_APP}\s(?:should|shall|must)\sbe\s(?:called|named)\s)(?P<name>.+)$"
)
_DARK = re.compile(
    r"(?i)\b(dark|night|light|bright|white|black)\b(?:[\s-]+(?:mode|theme|background))?"
)
_SYSTEM = re.compile(
    r"(?i)\b(?:follow|like|as)\sthe\s(?:system|device|browser)\b|\bauto(?:matic)?\s(?:mode|theme)\b"
)
_ADD = re.compile(
    r"(?i)^(?:add|include|track|show|give\s(?:it|them|each\s\w+|every\s\w+)|ask\sfor"
    r"|let\s(?:people|us|me|them)\s(?:add|enter|set)|with|(?:i|we)\s(?:want|need))\s(?P<what>.+)$"
)
_ARTICLE = re.compile(r"(?i)^(?:an?|the|one|another|some|optional|their|its|each|new|extra)\s+")
_FOR_WHAT = re.compile(
    r"(?i)\s+(?:to|for|on|of|in|at)\s+(?:it|them|all|(?:each|every|the|all|any|an?)\s[\w\s-]+)$"
)
_FIELD_WORD = re.compile(r"(?i)[\s-]+(?:field|column|input|box)s?$")
_FILLER = re.compile(
    r"(?i)^(?:make|paint|turn|colou?r|it|this|the|whole|app|page|site|list|everything|use|using|in|a"
    r"|an|with|nice|change|set|switch|to|into|go|accent|main|primary|theme|colou?rs?|mode|be|should"
    r"|its|my|our|all|more|give|as|for|of|background|add|have|want|i|we|dark|light|deep|bright|pale"
    r"|on|enable|hex|please)$"
)
_KINDS = (
    ("date", r"(?:due|start|end|birth)?\s?-?(?:date|day)|deadline|birthday"),
    ("tel", r"(?:tele)?phone(?:\snumber)?|mobile(?:\snumber)?|cell(?:\snumber)?"),
    ("email", r"e-?mail(?:\saddress)?"),
    ("url", r"link|url|website|web\s?page|homepage"),
    ("number", r"price|amount|cost|costs|quantity|number|age|count|budget|weight|distance|points"
               r"|score|number of \w+"),
    ("choice", r"priority|importance"),
    ("text", r"name|address|place|location|category|tag|notes?|comments?|description|details"
             r"|company|city|country|time|reason|author|title|message|colou?r|size|room|shop|store"),
)  # fmt: skip
_CHOICES = {"choice": ("Low", "Medium", "High")}


def understood(request: str) -> list[Change]:
    """The changes that a request asks for, in order; one at least.

    Raises `RunnerFailed`, saying which words were not understood and what would be.
    """
    held: list[str] = []

    def hold(match: re.Match[str]) -> str:
        held.append(match[1] or match[2])
        return f"\ue000{len(held) - 1}\ue001"

    text = _QUOTED.sub(hold, goals.clean(request).replace("\ue000", "").replace("\ue001", ""))
    clauses = [part for part in _BETWEEN.split(text) if part.strip()]
    if len(clauses) > MAX_CLAUSES:
        raise RunnerFailed(f"that is more than {MAX_CLAUSES} changes at once: ask for some of them")
    found: list[Change] = []
    for clause in clauses:
        clause = _POLITE.sub("", clause.strip()).strip(" .!")
        change = _change(clause, found[-1] if found else None, held)
        if change is None:
            raise not_understood(_HELD.sub(lambda match: f"“{held[int(match[1])]}”", clause))
        if isinstance(change, Rename) and found and isinstance(found[-1], Rename):
            found.pop()
        found.append(change)
    if not found:
        raise not_understood(request)
    return found


def not_understood(what: str) -> RunnerFailed:
    """Says what the template runner cannot do, and what it can."""
    known = "; ".join(UNDERSTOOD)
    return RunnerFailed(
        f"the template runner does not understand “{goals.shortened(what, 80)}”. "
        f"It understands: {known}. Several go together with “and”. For any other change, run with "
        "an LLM runner"
    )


def _change(clause: str, before: Change | None, held: Sequence[str]) -> Change | None:
    if match := _RENAME.match(clause):
        return _rename(match["name"], held)
    words = re.findall(r"#?[\w'-]+", _HELD.sub("", clause))
    if HEX.search(clause) or any(word.lower() in NAMED for word in words):
        colour = _colour(words)
        if colour is not None:
            return colour
    scheme = _scheme(clause, words)
    if scheme is not None:
        return scheme
    if match := _ADD.match(clause):
        return _field(match["what"], held)
    if isinstance(before, AddField):  # "add a due date and a phone number"
        return _field(clause, held)
    if isinstance(before, Rename) and clause[:1].isupper():  # "call it Salt and Pepper"
        return Rename(goals.shortened(f"{before.name} and {clause}", goals.MAX_TITLE_CHARS))
    return None


def _rename(name: str, held: Sequence[str]) -> Change | None:
    if match := _HELD.search(name):
        name = held[int(match[1])]
    name = name.strip(" .,;:!")
    return Rename(goals.shortened(name, goals.MAX_TITLE_CHARS)) if name else None


def _colour(words: Sequence[str]) -> Recolour | None:
    """The colour, if the clause speaks of nothing else."""
    colours = [word for word in words if word.lower() in NAMED or HEX.fullmatch(word)]
    others = [word for word in words if word not in colours and not _FILLER.match(word)]
    if others or len(colours) != 1:
        return None
    is_mode = any(word.lower() in ("mode", "background") for word in words)
    if is_mode and colours[0].lower() in ("black", "white"):
        return None
    return Recolour(accent(colours[0]))


def _scheme(clause: str, words: Sequence[str]) -> Scheme | None:
    if _SYSTEM.search(clause):
        return Scheme("light dark")
    match = _DARK.search(clause)
    if match is None or not all(_FILLER.match(word) or _DARK.match(word) for word in words):
        return None
    return Scheme("dark" if match[1].lower() in ("dark", "night", "black") else "light")


def _field(what: str, held: Sequence[str]) -> AddField | None:
    what = _FOR_WHAT.sub("", what.strip(" .,;:!"))
    while match := _ARTICLE.match(what):
        what = what[match.end() :]
    is_said = _FIELD_WORD.search(what) is not None
    label = _FIELD_WORD.sub("", what)
    if match := _HELD.search(label):
        label, is_said = held[int(match[1])], True
    label = " ".join(label.split())
    kind = _kind(label)
    # Without the word "field" only what is plainly one: "add a login page" is something else.
    if not label or len(label) > MAX_LABEL_CHARS or (kind is None and not is_said):
        return None
    name = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")[:30].strip("_")
    if not name or not name[0].isalpha():
        name = f"field_{name}".rstrip("_")
    kind = kind or "text"
    return AddField(name, f"{label[0].upper()}{label[1:]}", kind, _CHOICES.get(kind, ()))


def _kind(label: str) -> str | None:
    """By the last words of a label, what can be entered; None where they do not say."""
    if len(label.split()) > 4:
        return None
    for kind, words in _KINDS:
        if re.search(rf"(?i)(?:^|[\s-])(?:{words})$", label):
            return kind
    return None
