"""What keys look like that nobody has told us of. Pure, and linear in the length of a text.

Every repetition is bounded, or over characters among which its pattern cannot begin again.
"""

import re
import string

REPLACEMENT = "[redacted]"

_IN_TOKENS = f"{string.ascii_letters}{string.digits}_.-"

_PLAIN_HEADS = ("sk-", "eyJ", "xox", "AKIA")
_GITHUB = ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")
_UNDERSCORED_HEADS = ("e2b_", *_GITHUB, "github_pat_", "hr_")
_AUTHORIZATION = ("Authorization", "authorization", "AUTHORIZATION")
_BEGIN = "-----BEGIN "

_HEADS = (*_PLAIN_HEADS, *_UNDERSCORED_HEADS, *_AUTHORIZATION, _BEGIN, "://")
_STAND_INS = {
    _BEGIN: f"{_BEGIN}PRIVATE KEY-----\n{'A' * 32}",
    "eyJ": f"eyJ{'A' * 16}.{'A' * 16}.A",
}
_HEAD_BEGINNINGS = frozenset(head[:chars] for head in _HEADS for chars in range(1, len(head)))
_LONGEST_BEGINNING = max(map(len, _HEAD_BEGINNINGS))

# Also behind a letter: that may belong to a known value, and be replaced.
_OPEN_TOKEN = re.compile("|".join(map(re.escape, _PLAIN_HEADS + _UNDERSCORED_HEADS)))

# The blanks between the lines of a PEM block, also where it was put on one line.
_GAP = r"(?:\s|\\{1,4}[nrt])"
_PEM_BEGIN = r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
_PEM_HEADER = r"[A-Za-z-]{3,20}: [^\n\\]{1,100}+"
_PEM_WORD = r"[A-Za-z0-9+/=]"
_PEM_LINE = rf"{_GAP}{{1,8}}{_PEM_WORD}{{20,}}+(?![._])"  # that would be another kind of key
_PEM = (
    rf"{_PEM_BEGIN}(?:{_GAP}{{1,8}}{_PEM_HEADER}){{0,8}}(?:{_PEM_LINE})++"
    rf"(?:(?:{_GAP}{{1,8}}{_PEM_WORD}{{1,19}})?{_GAP}{{0,8}}-----END [A-Z0-9 ]{{0,60}}-----)?"
)
_OPEN_PEM = re.compile(
    rf"-----BEGIN [A-Z0-9 ]{{0,60}}-{{0,5}}"
    rf"|{_PEM_BEGIN}(?:{_GAP}{{1,8}}{_PEM_HEADER}){{0,8}}(?:{_PEM_LINE})*+"
    rf"(?:{_GAP}{{0,8}}|{_GAP}{{1,8}}[A-Za-z-]{{1,20}}(?::[^\n\\]{{0,100}})?"
    rf"|(?:{_GAP}{{1,8}}{_PEM_WORD}{{1,19}})?{_GAP}{{0,8}}\\{{0,4}}-{{0,5}}"
    rf"(?:-----E?N?D?[A-Z0-9 ]{{0,60}}-{{0,5}})?)"
)

_QUOTE = r"(?:\\{0,4}[\"'])?"
_SCHEME = r"(?i:bearer|basic|token)"
_HEADER_REST = rf"{_QUOTE}[ \t]{{0,8}}[:=][ \t]{{0,8}}{_QUOTE}{_SCHEME}[ \t]{{1,8}}"
_CREDENTIAL = r"[A-Za-z0-9_.~+/=:-]"
_OPEN_HEADER = re.compile(
    rf"(?i:authorization){_QUOTE}[ \t]{{0,8}}"
    rf"(?:[:=][ \t]{{0,8}}(?:\\{{0,4}}[\"']?)?"
    rf"(?:[A-Za-z]{{1,6}}(?:[ \t]{{1,8}}{_CREDENTIAL}*+)?)?)?"
)

# Without brackets: what was replaced before is no part of a user's name or password.
_NOT_IN_URL = r"\s/\"'\\<>`|{}^\[\]"
_IN_URL = rf"[^{_NOT_IN_URL}]"
_OPEN_URL = re.compile(rf"://{_IN_URL}*+")
_OPEN = (
    (_BEGIN, _OPEN_PEM),
    ("://", _OPEN_URL),
    *((head, _OPEN_HEADER) for head in _AUTHORIZATION),
)

_NO_WORD = r"(?<![A-Za-z0-9]{})"

# In this order. Each begins with its head as it is, which is looked for quickly, and then looks
# back over it; where a part is to stay it has a group.
_PATTERNS = tuple(
    (head, re.compile(pattern))
    for head, pattern in (
        (_BEGIN, _PEM),
        *((head, rf"({head}{_HEADER_REST}){_CREDENTIAL}{{8,}}+") for head in _AUTHORIZATION),
        ("://", rf"(://[^:@{_NOT_IN_URL}]*+:){_IN_URL}+(?=@)"),
        *(
            (head, rf"{head}{_NO_WORD.format(head)}{rest}")
            for head, rest in (
                ("sk-", "[A-Za-z0-9_-]{16,}+"),
                *((head, "[A-Za-z0-9]{16,}+") for head in ("e2b_", *_GITHUB)),
                ("github_pat_", "[A-Za-z0-9_]{16,}+"),
                ("hr_", "[A-Za-z0-9_-]{43,}+"),
                ("xox", "[a-z]-[A-Za-z0-9-]{10,}+"),
                ("AKIA", "[A-Z0-9]{16}(?![A-Za-z0-9])"),
                ("eyJ", r"[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]*+"),
            )
        ),
    )
)


def may_have_keys(text: str) -> bool:
    """Whether it is worth a closer look. Cheap, and never wrongly no."""
    for head in _PLAIN_HEADS:
        if head in text:
            return True
    if "_" in text:
        for head in _UNDERSCORED_HEADS:
            if head in text:
                return True
    return (
        _BEGIN in text
        or ("@" in text and "://" in text)
        or "uthorization" in text
        or "AUTHORIZATION" in text
    )


def without_keys(text: str, begin: int = 0) -> str:
    """`text` from `begin` on, its keys replaced; what stands before it is only looked at."""
    before, text = text[:begin], text[begin:]
    for head, pattern in _PATTERNS:
        if head in text:
            text = _without(pattern, before, text)
    return text


def _without(pattern: re.Pattern[str], before: str, text: str) -> str:
    parts, behind, whole = [], len(before), before + text
    for found in pattern.finditer(whole, behind):
        kept = found[1] if pattern.groups else ""
        parts += [whole[behind : found.start()], kept, REPLACEMENT]
        behind = found.end()
    return "".join([*parts, whole[behind:]]) if parts else text


def open_key(text: str) -> int:
    """Where at the end of `text` something begins that may become a key; its length for nowhere."""
    end = len(text)
    begins = [end]
    for chars in range(min(_LONGEST_BEGINNING, end), 0, -1):
        if text[end - chars :] in _HEAD_BEGINNINGS:
            begins.append(end - chars)
            break
    if found := _OPEN_TOKEN.search(text, len(text.rstrip(_IN_TOKENS))):
        begins.append(found.start())
    for head, rest in _OPEN:
        begin = text.rfind(head)
        if begin >= 0 and rest.fullmatch(text, begin):
            begins.append(begin)
    return min(begins)


def stand_in(text: str, begin: int) -> str | None:
    """Something short that goes on as the key does that `text` is from `begin` on; None: no key."""
    for head, pattern in _PATTERNS:
        if text.startswith(head, begin) and (found := pattern.match(text, begin)):
            behind = text[found.end() :]  # of a block perhaps the beginning of a line
            short = _STAND_INS.get(head, text[begin : begin + 256])
            return short + behind if len(behind) < 256 else None
    return None
