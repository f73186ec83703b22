"""Colours that people name, and what becomes of one as the accent of a page.

An accent is two colours: one for a light ground, one for a dark one. Each must have a contrast of
4.5 : 1 or more against its grounds (WCAG 2.2, 1.4.3), so a colour is darkened, or lightened, until
it has.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

Rgb = tuple[float, float, float]

LIGHT_GROUNDS = ("#ffffff", "#f4f2ee")
DARK_GROUNDS = ("#14130f", "#26262a")
CONTRAST = 4.5
_STEPS = 100
_MARGIN = 0.05  # what is lost when a colour is written with whole numbers

NAMED = {
    "red": "#dc2626", "crimson": "#be123c", "orange": "#ea580c", "amber": "#d97706",
    "yellow": "#ca8a04", "gold": "#b7860b", "lime": "#65a30d", "green": "#16a34a",
    "emerald": "#059669", "mint": "#10b981", "teal": "#0d9488", "turquoise": "#0d9488",
    "cyan": "#0891b2", "sky": "#0284c7", "blue": "#2563eb", "navy": "#1e3a8a",
    "indigo": "#4f46e5", "violet": "#7c3aed", "purple": "#9333ea", "lilac": "#a855f7",
    "magenta": "#c026d3", "fuchsia": "#c026d3", "pink": "#db2777", "rose": "#e11d48",
    "brown": "#92400e", "beige": "#a8845c", "grey": "#6b7280", "gray": "#6b7280",
    "silver": "#94a3b8", "black": "#171717", "white": "#737373",
}  # fmt: skip
HEX = re.compile(r"#(?:[0-9a-f]{6}|[0-9a-f]{3})(?![0-9a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Accent:
    """A colour, 4.5 : 1 or more against white (light) and against near-black (dark)."""

    light: str
    dark: str


def accent(colour: str) -> Accent:
    """The accent of a colour by name, or as `#rgb` or `#rrggbb`. Raises `KeyError`."""
    start = _rgb(colour if colour.startswith("#") else NAMED[colour.lower()])
    return Accent(
        light=_until(start, _darker, LIGHT_GROUNDS), dark=_until(start, _lighter, DARK_GROUNDS)
    )


def contrast(first: str, second: str) -> float:
    """Contrast of two colours as WCAG 2.2 defines it, 1 to 21."""
    lighter, darker = sorted((_luminance(_rgb(first)), _luminance(_rgb(second))), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _until(start: Rgb, change: Callable[[Rgb, float], Rgb], grounds: tuple[str, ...]) -> str:
    for step in range(_STEPS + 1):
        colour = _hex(change(start, step / _STEPS))
        if all(contrast(colour, ground) >= CONTRAST + _MARGIN for ground in grounds):
            return colour
    raise AssertionError("black and white have contrast enough")  # pragma: no cover


def _darker(colour: Rgb, share: float) -> Rgb:
    red, green, blue = (part * (1 - share) for part in colour)
    return red, green, blue


def _lighter(colour: Rgb, share: float) -> Rgb:
    red, green, blue = (part + (1 - part) * share for part in colour)
    return red, green, blue


def _luminance(colour: Rgb) -> float:
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _rgb(colour: str) -> Rgb:
    digits = colour.removeprefix("#")
    if len(digits) == 3:
        digits = "".join(digit * 2 for digit in digits)
    red, green, blue = (int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4))
    return red, green, blue


def _hex(colour: Rgb) -> str:
    return "#" + "".join(f"{round(part * 255):02x}" for part in colour)
