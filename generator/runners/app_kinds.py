"""The kinds of app that the template runner knows: one folder in `apps/` each.

A folder holds `kind.toml` (which goals mean this kind, and its words), `field_test.py` (which tests
a field that somebody wants added) and the files of the app.
What all kinds ship alike stands in `apps/shared`. A new kind is a new folder, and a function in
`_OWN_TEXTS` if its texts need more of the goal than its title.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from generator.runners import goal as goals
from generator.runners.colours import Accent

APPS = Path(__file__).parent / "apps"
SHARED = "shared"
DATA_FILE = "app.json"

TextValue = str | list[str]


ACCENTS = (
    Accent("#0f766e", "#5eead4"),  # teal
    Accent("#4338ca", "#a5b4fc"),  # indigo
    Accent("#be123c", "#fda4af"),  # rose
    Accent("#a8410c", "#fdba74"),  # clay
    Accent("#6d28d9", "#c4b5fd"),  # violet
    Accent("#166534", "#86efac"),  # forest
    Accent("#0369a1", "#7dd3fc"),  # ocean
    Accent("#9d174d", "#f9a8d4"),  # plum
)


@dataclass(frozen=True, slots=True)
class AppKind:
    """One kind: `settings` is its `kind.toml`, `files` the text of every file it ships.

    `field_test` tests a field that is added to an app of this kind.
    """

    name: str
    settings: Mapping[str, Any]
    files: Mapping[str, str]
    field_test: str


@cache
def app_kinds() -> Mapping[str, AppKind]:
    """Every kind by its name, in alphabetical order."""
    names = sorted(
        path.parent.name for path in APPS.glob("*/kind.toml") if path.parent.name != SHARED
    )
    shared = _texts(APPS / SHARED)
    return {name: _app_kind(name, shared) for name in names}


def kind_for(goal: str) -> AppKind:
    """The kind whose word comes first in the goal, else one by hash."""
    kinds = app_kinds()
    text = goals.clean(goal)
    for words in ("words", "weak_words"):
        places = {name: _first(kind.settings[words], text) for name, kind in kinds.items()}
        found = {name: place for name, place in places.items() if place is not None}
        if found:
            return kinds[min(found, key=lambda name: found[name])]
    return goals.pick(goal, "kind", list(kinds.values()))


def app_files(goal: str) -> dict[str, str]:
    """Path to text of every file of the app for `goal`; only `app.json` depends on its words."""
    kind = kind_for(goal)
    data = data_file(app_data(kind, goal))
    return dict(sorted({**kind.files, DATA_FILE: data}.items()))


def data_file(data: Mapping[str, Any]) -> str:
    """What an app is made of, as `app.json` says it."""
    return json.dumps(data, ensure_ascii=False, indent=2) + "\n"


def app_data(kind: AppKind, goal: str) -> dict[str, TextValue]:
    """Every text of the app that is not the same in all apps of its kind."""
    accent = goals.pick(goal, "accent", ACCENTS)
    own_texts = _OWN_TEXTS.get(kind.name, _no_texts)
    return {
        "kind": kind.name,
        "title": goals.title(goal, kind.settings["title"]),
        "tagline": goals.pick(goal, "tagline", kind.settings["taglines"]),
        "idea": goals.idea(goal),
        "accent_light": accent.light,
        "accent_dark": accent.dark,
        "color_scheme": "light dark",
        "fields": [],
        **_flavoured(kind.settings, goal),
        **own_texts(kind.settings, goal),
    }


def _no_texts(settings: Mapping[str, Any], goal: str) -> dict[str, TextValue]:
    return {}


def _todo_texts(settings: Mapping[str, Any], goal: str) -> dict[str, TextValue]:
    people = goals.people(goal)
    if not people:
        return {"people": []}
    tagline = goals.pick(goal, "tagline", settings["taglines_together"])
    return {"people": people, "tagline": tagline}


def _poll_texts(settings: Mapping[str, Any], goal: str) -> dict[str, TextValue]:
    topic = goals.topic(goal, settings["title"])
    asked = goals.question(goal)
    question, options = goals.pick(
        goal,
        "options",
        (
            ("What do you think?", ["Love it", "Like it", "Not sure", "Not for me"]),
            ("Where do you stand?", ["All in", "Leaning yes", "Undecided", "Rather not"]),
            ("How do you feel about it?", ["Great", "Good", "Could be better", "Not good"]),
        ),
    )
    given = goals.options(goal)
    if given and not asked:
        question = "Which one gets your vote?"
    return {
        "title": asked or topic,
        "eyebrow": settings["title"] if asked else topic,
        "question": asked or question,
        "options": given or options,
    }


def _landing_texts(settings: Mapping[str, Any], goal: str) -> dict[str, TextValue]:
    titles = goals.three_features(goal)
    cards = goals.pick(goal, "benefits", settings["own_benefits" if titles else "benefits"])
    texts: dict[str, TextValue] = {"title": goals.offer(goal, settings["title"])}
    pairs = zip(titles or cards["titles"], cards["texts"], strict=True)
    for number, (title, text) in enumerate(pairs, start=1):
        texts |= {f"benefit_{number}_title": title, f"benefit_{number}_text": text}
    return texts


_OWN_TEXTS: Mapping[str, Callable[[Mapping[str, Any], str], dict[str, TextValue]]] = {
    "todo": _todo_texts,
    "poll": _poll_texts,
    "landing": _landing_texts,
}


def _flavoured(settings: Mapping[str, Any], goal: str) -> dict[str, TextValue]:
    """The kind's texts, with those of the first flavour that the goal has a word of."""
    text = goals.clean(goal)
    for flavour in settings.get("flavours", []):
        if _first(flavour["words"], text) is not None:
            changed = {name: value for name, value in flavour.items() if name != "words"}
            return {**settings["texts"], **changed}
    return dict(settings["texts"])


def _first(words: Iterable[str], text: str) -> int | None:
    """Where the first of `words` (regular expressions) stands in `text` as a whole word."""
    match = re.search(rf"(?i)(?<!\w)(?:{'|'.join(words)})(?:e?s)?(?!\w)", text)
    return match.start() if match else None


def _app_kind(name: str, shared: Mapping[str, str]) -> AppKind:
    texts = {**shared, **_texts(APPS / name)}
    return AppKind(
        name=name,
        settings=tomllib.loads(texts.pop("kind.toml")),
        field_test=texts.pop("field_test.py"),
        files=texts,
    )


def _texts(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "__pycache__"
    }
