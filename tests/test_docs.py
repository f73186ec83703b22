"""What the documentation says about the code is what the code says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs.generate import DOCS, ENVELOPE, WHAT_TO_DO, Envelope, event_schemas, main
from schemas import cloud_event
from schemas.decoding import PAYLOADS, UPCASTERS
from schemas.events import Known
from tests.histories import recorded
from tests.schemas.payloads import any_payload

ROOT = DOCS.parent


def test_links_between_the_documents_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    assert len(pages) > 5
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_guarantee_names_tests_that_are_there() -> None:
    page = (DOCS / "guarantees.md").read_text()
    _, *guarantees = page.split("\n## ")
    assert len(guarantees) == 12
    for guarantee in guarantees:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", guarantee)
        assert named, guarantee
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


def test_locks_name_no_package_index() -> None:
    for lock in ROOT.glob("locks/*.txt"):
        assert "://" not in lock.read_text()
        assert "--hash=sha256:" in lock.read_text()


# --- published schemas ---------------------------------------------------------------------------


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A folder in which everything has been published as it is now."""
    main([], tmp_path)
    return tmp_path


def change(docs: Path, name: str, **fields: Any) -> Path:
    """Let the published schema `name` have been another; its file."""
    path = docs / "events" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return path


def contents(docs: Path) -> dict[str, str]:
    return {str(path.relative_to(docs)): path.read_text() for path in docs.rglob("*.*")}


def test_page_and_schemas_are_what_the_code_generates_and_break_nothing_published() -> None:
    main(["--check"])


def test_every_event_type_and_the_envelope_have_a_published_schema() -> None:
    published = {path.stem: json.loads(path.read_text()) for path in DOCS.glob("events/*.json")}
    assert published.keys() == {*PAYLOADS, *UPCASTERS, ENVELOPE}
    assert {schema["title"] for schema in published.values()} == published.keys()
    assert len({schema["$id"] for schema in published.values()}) == len(published)


def test_generating_again_changes_nothing(docs: Path) -> None:
    before = contents(docs)
    main(["--check"], docs)
    main([], docs)
    assert contents(docs) == before
    assert all(text.endswith("}\n") for name, text in before.items() if name.endswith(".json"))


@pytest.mark.parametrize("arguments", [[], ["--check"]], ids=["write", "check"])
def test_a_schema_that_breaks_a_published_one_is_refused_with_what_to_do(
    docs: Path, arguments: list[str]
) -> None:
    change(docs, "JobQueued", required=["tenant"])
    change(docs, "PreviewPaused", description="stale, and yet not written")
    before = contents(docs)
    with pytest.raises(SystemExit) as refused:
        main(arguments, docs)
    assert refused.value.code == "\n".join(
        [
            *(
                f"JobQueued: {field} became required: recorded events may lack it"
                for field in ("goal", "project_id", "user_id")
            ),
            WHAT_TO_DO,
        ]
    )
    assert contents(docs) == before


def test_the_envelope_is_held_like_an_event(docs: Path) -> None:
    change(docs, ENVELOPE, required=event_schemas()[ENVELOPE]["required"] + ["cause"])
    with pytest.raises(SystemExit, match="envelope: cause became optional"):
        main([], docs)


def test_a_published_type_that_has_gone_from_the_code_is_refused(docs: Path) -> None:
    (docs / "events" / "JobPraised.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"JobPraised: .* neither has nor upcasts it"):
        main([], docs)


def test_a_type_that_is_only_upcast_keeps_its_schema_and_its_place_on_the_page(
    docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = docs / "events" / "JobPraised.json"
    old.write_text("{}")
    monkeypatch.setitem(UPCASTERS, "JobPraised", lambda values: ("JobQueued", values))
    main([], docs)
    assert old.read_text() == "{}"
    assert "[JobPraised](events/JobPraised.json)" in (docs / "events.md").read_text()


def test_a_harmless_change_is_stale_until_it_is_published(docs: Path) -> None:
    properties = dict(event_schemas()["JobQueued"]["properties"])
    del properties["tier"]
    path = change(docs, "JobQueued", properties=properties)
    with pytest.raises(SystemExit, match=r"run `python -m docs\.generate`: JobQueued\.json"):
        main(["--check"], docs)
    assert "tier" not in path.read_text()
    main([], docs)
    assert json.loads(path.read_text()) == event_schemas()["JobQueued"]


# --- the envelope --------------------------------------------------------------------------------


@given(any_payload, st.booleans())
def test_every_cloud_event_fits_the_published_envelope(payload: Known, bare: bool) -> None:
    (event,) = recorded([payload])
    if not bare:
        event = event._replace(cause="cmd-1", trace="00-abc-def-01")
    attributes = cloud_event(event)
    Envelope.model_validate(attributes, extra="forbid")
    if not bare:
        assert attributes.keys() == Envelope.model_fields.keys()
