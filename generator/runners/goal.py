"""Reading a goal: plain rules that turn what a person wrote into texts of an app.

Every function takes any text and answers the same for the same text.
"""

import re
import unicodedata
from collections.abc import Sequence
from hashlib import sha256
from itertools import islice
from typing import TypeVar

MAX_TITLE_CHARS = 60
MAX_IDEA_CHARS = 160
MAX_OPTIONS = 8
MAX_OPTION_CHARS = 60
MAX_PEOPLE = 8
MAX_PLACES = 8
"""How many places of a goal are looked at for a list; the rest is prose, and reading it costs."""

T = TypeVar("T")

_JOINERS = "\u200c\u200d"  # Persian spelling and emoji families are nothing without them.
_SENTENCE_END = re.compile(r"(?<=[.!?。！？؟])\s|\n")  # noqa: RUF001
_PREAMBLE = re.compile(
    r"""(?xi)
    please[,\s]+
    | (?:hi|hey|hello)(?:\ there)?[,!\s]+
    | (?:can|could|would)\ you\ (?:please\ )?
    | (?:i|we)(?:\ would|'d)?\ (?:want|need|like)\ (?:to\ (?:have\ |see\ )?)?
    | let'?s\ (?=\w)
    | give\ (?:me|us)[ ]
    | (?:make|build|create|write|develop|design|generate|set\ up)[ ]
      (?:(?:me|us)\ |(?=(?:a|an|the|some|my|our|one)\ ))
    | (?:a|an|the|some|one)[ ]
    | (?:simple|little|small|nice|basic)\ (?=\w)
    | (?:web\ ?|mobile\ )?app(?:lication)?\ (?:for|to)[ ]
    """
)
_DANGLING = re.compile(
    r"(?i)(?:\s+(?:a|an|the|and|or|for|with|of|to|in|on|at|by|from|that|which|where|who|so|is|my"
    r"|our|&|\+|-))+$"
)
_NUMBERS = {
    word: number
    for number, word in enumerate(("two", "three", "four", "five", "six", "seven", "eight"), 2)
}
_MANY = re.compile(
    r"(?i)\b(two|three|four|five|six|seven|eight|[2-8])(?:\s+\w+)?\s+"
    r"(?:people|persons?|users|friends|of us|roommates|flatmates|housemates|colleagues|kids"
    r"|children|siblings|sisters|brothers|partners|members|players|adults|parents)\b"
)
_PAIR = re.compile(
    r"(?i)\b(?:couple|partner|wife|husband|girlfriend|boyfriend|spouse|(?:me|i|my \w+) and "
    r"(?:me|i|my \w+))\b"
)
_GROUP = re.compile(
    r"(?i)\b(?:family|families|team|friends|roommates|flatmates|housemates|colleagues|kids"
    r"|together|shared)\b"
)
_NAME = r"[^\W\d_][\w'-]*"
_NAMED = re.compile(
    rf"\b(?:for|between|of)\s+({_NAME}(?:,\s*{_NAME})*,?(?:\s+and\s+|\s*&\s*){_NAME})"
)
_NOT_NAMES = re.compile(
    r"(?i)i|me|my|our|we|us|the|an?|(?:mon|tues|wednes|thurs|fri|satur|sun)day|january|february"
    r"|march|april|may|june|july|august|september|october|november|december"
)
_YES_NO = re.compile(r"(?i)^(?:should|shall|is|are|do|does|did|can|could|will|would|have|has)\b")
_ASKING = re.compile(
    r"(?i)^(?:who|what|which|where|when|how|why|should|shall|is|are|do|does|can|will)\b"
)
_POLL_WORDS = re.compile(
    r"""(?xi)^
    (?:
        (?:quick\ |online\ |live\ |team\ |group\ |\w+\ )??
        (?:polls?|polling|votes?|voting|surveys?|ballot)\b (?:\ (?:app|page|tool|site))?
        (?:[\s:,-]*
           (?:about|on|over|for|asking|whether|to\ (?:decide|choose|pick|find\ out)(?:\ on)?)\b)?
      | (?:(?:app|page|tool|site|place|way)\ )? (?:where|for|so\ that)\ (?:[\w']+\ ){1,3}?
        (?:can\ |to\ )? (?:vote|choose|decide)\b (?:\ (?:on|for|about|between)\b)?
    )
    [\s:,-]*
    """
)
_LANDING_WORDS = re.compile(
    r"(?i)^(?:[\w-]+ ){0,3}?(?:landing(?: |-)?pages?|landing|web ?sites?|home ?pages?|pages?"
    r"|wait-?lists?|waiting lists?|mailing lists?|newsletters?|sign[- ]?ups?)"
    r"(?: (?:page|form|site))?(?: with [^.]{0,40}?(?:sign[- ]?up|form|newsletter|wait-?list))?"
    r" (?:for|about|of|announcing|promoting)\s+(?:(?:my|our|a|an|the|new|your)\s+)*"
)
_CALLED = re.compile(
    r"(?:[Cc]alled|[Nn]amed)\s+[\"'“‘«]?([^\W_][^\"'”’»,.;:!?\n]{0,39})"  # noqa: RUF001
)
_CLAUSE = re.compile(r"\s+(?:that|which|who|where|with|and|for|is|are|has|-)\s", re.IGNORECASE)


def clean(goal: str) -> str:
    """The goal in composed form, with lines kept, without what cannot be shown or stored."""
    text = unicodedata.normalize("NFC", goal.replace("\r\n", "\n").replace("\r", "\n"))
    kept = (
        char if char == "\n" or char in _JOINERS else " " if char.isspace() else _shown(char)
        for char in text
    )
    lines = (" ".join(line.split()) for line in "".join(kept).split("\n"))
    return "\n".join(line for line in lines if line)


def pick(goal: str, salt: str, choices: Sequence[T]) -> T:
    """One of `choices`, always the same for this goal and this `salt`."""
    digest = sha256(f"{salt}\0{goal}".encode("utf-8", "surrogatepass")).digest()
    return choices[int.from_bytes(digest[:8]) % len(choices)]


def title(goal: str, default: str) -> str:
    """A short name: the goal's first sentence without "please build me a"."""
    sentence = _sentences(goal)[0]
    return _heading(_without_preamble(_unquoted(sentence)), default)


def idea(goal: str) -> str:
    """The goal itself on one line, shortened."""
    return shortened(" ".join(clean(goal).split()), MAX_IDEA_CHARS)


def people(goal: str) -> list[str]:
    """The people that the goal speaks of, by name or counted; none when it is about one."""
    text = " ".join(clean(goal).split())
    for named in _NAMED.finditer(text):
        names = [name for name in re.split(r",\s*|\s+and\s+|\s*&\s*", named[1]) if name]
        names = [name.removeprefix("and ").strip()[:30] for name in names]
        if all(name[0].isupper() and not _NOT_NAMES.fullmatch(name) for name in names):
            return _distinct(names)[:MAX_PEOPLE]
    if match := _MANY.search(text):
        number = match[1].lower()
        return _numbered(_NUMBERS.get(number) or int(number))
    if _PAIR.search(text):
        return _numbered(2)
    return _numbered(3) if _GROUP.search(text) else []


def topic(goal: str, default: str) -> str:
    """What a poll is about, without the word poll and without its options."""
    return _heading(_without_poll_words(_sentences(goal)[0].split(":")[0]), default)


def question(goal: str) -> str | None:
    """What a poll asks, if the goal says it."""
    for sentence in _sentences(goal):
        if "?" in sentence:
            asked = sentence[: sentence.index("?") + 1]
            clause = re.split(r"[:\"“«]\s*|\s[-–—]\s", asked)[-1]  # noqa: RUF001
            asked = clause if len(clause) > 3 else asked
            return _heading(_without_poll_words(asked.lstrip("'‘ ")), "") or None  # noqa: RUF001
    first = _without_poll_words(_sentences(goal)[0].split(":")[0])
    if _ASKING.match(first):
        return f"{_heading(first, '')}?"
    return None


def options(goal: str) -> list[str] | None:
    """What a poll lets people choose from, if the goal says it."""
    text = clean(goal)
    bullets = re.findall(r"(?m)^(?:[-*•]|\d{1,2}[.)])\s+(.+)$", text)
    if len(bullets) > 1:
        return _options(bullets)
    flat = " ".join(text.split())
    for marker in (r"\?\s*", r":\s*", r"(?i)\b(?:between|among|options|choices)\b:?\s*"):
        for match in islice(re.finditer(marker, flat), MAX_PLACES):
            rest = re.split(r"[.!?](?:\s|$)", flat[match.end() :])[0]
            if found := _listed(rest, most_words=7):
                return found
    asked = question(goal) or _without_poll_words(_sentences(goal)[0])
    if found := _listed(asked.rstrip("?"), most_words=3):
        return found
    if _YES_NO.match(asked) and " or " not in asked:
        return ["Yes", "No", "Not sure"]
    if _ASKING.match(asked):
        return ["The usual", "Something new", "Surprise me", "Whatever most like"]
    return None


def offer(goal: str, default: str) -> str:
    """What a landing page is about: a name the goal gives, else its subject."""
    text = clean(goal)
    if match := _CALLED.search(text):
        return _heading(_CLAUSE.split(match[1])[0], default)
    sentence = _without_preamble(_unquoted(_sentences(goal)[0]))
    return _heading(_LANDING_WORDS.sub("", sentence, count=1) or sentence, default)


def three_features(goal: str) -> list[str] | None:
    """Titles of exactly three things the goal says its subject comes with."""
    flat = " ".join(clean(goal).split())
    marker = r"(?i)\b(?:with|featuring|offering|offers|about its)\s+"
    for match in islice(re.finditer(marker, flat), MAX_PLACES):
        found = _listed(re.split(r"[.!?;:](?:\s|$)", flat[match.end() :])[0])
        if found and len(found) == 3:
            return found
    return None


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters of `text`, cut between words, or between letters at worst."""
    if len(text) <= limit:
        return text
    room = limit - 1
    head = text[:room]
    words = (head if text[room] == " " else head.rpartition(" ")[0]).rstrip()
    if not words:
        words = head[: _letter_boundary(text, room)]
    words = _DANGLING.sub("", words) or words
    return words.rstrip(" ,.;:-–—") + "…"  # noqa: RUF001


def _shown(char: str) -> str:
    # Not "Cn": what Unicode has yet to assign differs from one Python to the next.
    return "" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co") else char


def _sentences(goal: str) -> list[str]:
    parts = [part.strip() for part in _SENTENCE_END.split(clean(goal))]
    return [part for part in parts if part] or [""]


def _unquoted(text: str) -> str:
    pairs = ('""', "''", "“”", "‘’", "«»")  # noqa: RUF001
    return text[1:-1].strip() if len(text) > 2 and text[0] + text[-1] in pairs else text


def _without_preamble(text: str) -> str:
    while match := _PREAMBLE.match(text):
        if not text[match.end() :].strip():
            break
        text = text[match.end() :]
    return text


def _without_poll_words(text: str) -> str:
    text = _without_preamble(text)
    rest = _POLL_WORDS.sub("", text, count=1).strip()
    return _without_preamble(rest) if rest else text


def _heading(text: str, default: str) -> str:
    text = text.strip(" \t,;:-–—").rstrip(".!")  # noqa: RUF001
    if not any(unicodedata.category(char)[0] in "LNS" for char in text):
        return default
    return shortened(_capitalised(text), MAX_TITLE_CHARS)


def _capitalised(text: str) -> str:
    first_word = text.split()[0]
    upper = text[0].upper()
    keeps_its_case = len(upper) > 1 or any(char.isupper() for char in first_word[1:])
    return text if keeps_its_case else upper + text[1:]


def _listed(text: str, most_words: int = 5) -> list[str] | None:
    """The items of "tea, coffee or juice", if that is what `text` is."""
    parts = re.split(r"\s*[,;]\s*|(?<=\w)/(?=\w)|\s+(?:or|vs\.?|versus)\s+", text)
    last = re.split(r"\s+(?:and|&)\s+", parts[-1])
    parts = [*parts[:-1], *last]
    if any(len(part.split()) > most_words for part in parts):
        return None
    return _options(parts)


def _options(parts: Sequence[str]) -> list[str] | None:
    stripped = (
        re.sub(r"(?i)^(?:(?:either|or|and|a|an|the)\s+)+", "", part.strip()) for part in parts
    )
    trimmed = (re.sub(r"\s*\([^)]*\)$", "", part).strip(' .,;:!?"“”') for part in stripped)
    shown = [_capitalised(shortened(part, MAX_OPTION_CHARS)) for part in trimmed if part]
    found = _distinct(shown)
    return found[:MAX_OPTIONS] if len(found) > 1 else None


def _numbered(count: int) -> list[str]:
    return [f"Person {number}" for number in range(1, count + 1)]


def _distinct(texts: Sequence[str]) -> list[str]:
    return list({text.casefold(): text for text in reversed(texts)}.values())[::-1]


def _letter_boundary(text: str, limit: int) -> int:
    """The last place up to `limit` that does not part a letter from its marks, or an emoji."""
    for place in range(limit, 0, -1):
        before, after = text[place - 1], text[place]
        joined = (
            unicodedata.category(after)[0] == "M"
            or before == "\u200d"
            or after in _JOINERS
            or "\U0001f3fb" <= after <= "\U0001f3ff"
            or (_is_flag_letter(after) and _flag_letters_before(text, place) % 2 == 1)
        )
        if not joined:
            return place
    return limit


def _is_flag_letter(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _flag_letters_before(text: str, place: int) -> int:
    start = place
    while start and _is_flag_letter(text[start - 1]):
        start -= 1
    return place - start
