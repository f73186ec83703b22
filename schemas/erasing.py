"""What is left of an event when its job is erased: what counts, without what a person wrote.

A tombstone is the payload with every field kept or replaced as the table says, and the SHA-256 of
the bytes that it replaces: whoever has a copy of these can prove that it stood there. The job folds
as before, with the same numbers and times, and says nothing of a person any more.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from schemas.decoding import decode
from schemas.errors import UndecodableEvent

ERASED = "[erased]"
ERASED_ID = "erased"
"""In place of an id, where brackets may not stand."""
HASH = "erased_sha256"


class _Kept:
    """A field that stays: it counts, and names nobody."""


KEPT: Final = _Kept()

Rule = _Kept | str | None | dict[str, Any]

_METERED: Mapping[str, Rule] = {"input_tokens": KEPT, "output_tokens": KEPT, "cost_usd": KEPT}

RULES: Mapping[str, Mapping[str, Rule]] = {
    "JobQueued": {
        # Tenant and project are the key of the numbering.
        "tenant": KEPT,
        "user_id": ERASED_ID,
        "project_id": KEPT,
        "goal": ERASED,
        "tier": KEPT,
        "base_build": KEPT,
        "base_manifest": None,
        "base_job": KEPT,
        "restore": KEPT,
        "in_place": KEPT,
        "limits": KEPT,
    },
    "JobStarted": {"attempt": KEPT, "worker": ERASED},
    "PhaseStarted": {"phase": KEPT, "round": KEPT},
    "RetryScheduled": {
        "phase": KEPT,
        "round": KEPT,
        "step": KEPT,
        "tries": KEPT,
        "kind": KEPT,
        "message": ERASED,
        "wait_s": KEPT,
        **_METERED,
    },
    "PhaseCompleted": {
        "phase": KEPT,
        "round": KEPT,
        "duration_ms": KEPT,
        "evidence": {},
        "manifest": None,
        **_METERED,
    },
    "SandboxCreated": {"sandbox_id": ERASED, "provider": KEPT, "ends_at": KEPT},
    "ChecksFailed": {
        "phase": KEPT,
        "round": KEPT,
        "fingerprint": ERASED,
        "command": ERASED,
        "exit_code": KEPT,
        "output": "",
        "message": "",
    },
    "CancelRequested": {"by": ERASED, "reason": ""},
    "JobReady": {
        "build_number": KEPT,
        "build_version": KEPT,
        "sandbox_id": None,
        "preview_url": None,
        "workspace_path": None,
        "manifest": None,
        "log": None,
    },
    "JobFailed": {
        "phase": KEPT,
        "kind": KEPT,
        "message": ERASED,
        "debug_id": KEPT,
        "log": None,
        **_METERED,
    },
    "JobCancelled": {"by": ERASED, "reason": "", "log": None, **_METERED},
    "PreviewRequested": {"by": ERASED},
    "PreviewPaused": {"kept_until": KEPT},
    "PreviewResumed": {"sandbox_id": ERASED, "preview_url": ERASED, "ends_at": KEPT},
    "PreviewExpired": {"reason": ERASED, "continued_by": KEPT},
}
"""By wire type, what becomes of each field. A field that no rule names is left out."""


def tombstone(event_type: str, data: bytes, *, sha256: str) -> bytes:
    """What stands in place of the payload `data`, whose SHA-256 in hex is `sha256`.

    The tombstone of a tombstone is itself, under its first hash. Of a payload that cannot be
    decoded, or of a type without rules, nothing is left but the hash.
    """
    values, rules = _object(data), RULES.get(event_type, {})
    if not _decodes(event_type, data):
        rules = {}
    left = {
        name: value if rules[name] is KEPT else rules[name]
        for name, value in values.items()
        if name in rules
    }
    left[HASH] = values[HASH] if _is_hash(values.get(HASH)) else sha256
    return json.dumps(left, ensure_ascii=False, separators=(",", ":")).encode()


def _decodes(event_type: str, data: bytes) -> bool:
    try:
        decode(event_type, data)
    except UndecodableEvent:
        return False
    return True


def _object(data: bytes) -> dict[str, Any]:
    """The fields of a JSON object; none of what is something else."""
    try:
        values = json.loads(data)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")
