"""What is refused with a sentence, whoever asks for it."""


class Unusable(Exception):
    """A field of a request has a value that makes no sense; `problem` says why."""

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        self.problem = problem
        super().__init__(f"{field}: {problem}")


class NotAllowed(Exception):
    """The tenant may not have what it asks for; the message says what it may have."""
