"""Examines what Headrace stands on, and changes nothing: it asks, and judges what it hears.

Each question has a deadline, and one that stays unanswered is itself a finding. Nothing is opened,
made or migrated; the transactions of Postgres are read-only.
"""

from service.doctor.examination import examine, unreached
from service.doctor.finding import Finding, Level

__all__ = ["Finding", "Level", "examine", "unreached"]
