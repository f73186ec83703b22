"""What the documentation says about the code is what the code says."""

import re
from pathlib import Path

from docs.generate import EVENTS, events_page

ROOT = Path(__file__).parent.parent


def test_the_page_of_events_is_what_the_code_generates() -> None:
    assert EVENTS.read_text() == events_page(), "run `python -m docs.generate`"


def test_links_between_the_documents_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    assert len(pages) > 5
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_locks_name_no_package_index() -> None:
    for lock in ROOT.glob("locks/*.txt"):
        assert "://" not in lock.read_text()
        assert "--hash=sha256:" in lock.read_text()
