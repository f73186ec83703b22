"""What the errors of models and providers mean for a build."""

from collections.abc import Mapping

from pydantic_ai.exceptions import (
    AgentRunError,
    ContentFilterError,
    FallbackExceptionGroup,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelNotFoundError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestRejectedError,
    ModelRequestTimeout,
    ModelServerError,
    ModelUnavailableError,
)

from generator.errors import GoalRefused, RunnerBusy, RunnerFailed, RunnerUnavailable
from generator.output import clean
from generator.runners.llm.models import PROVIDERS

MAX_SAID_CHARS = 300

ProviderError = (AgentRunError, FallbackExceptionGroup)
"""What a request to a model may raise."""


def is_worth_a_retry(error: Exception) -> bool:
    """Whether the same request, at once or soon, may well go through."""
    if isinstance(error, FallbackExceptionGroup):
        return any(map(is_worth_a_retry, error.exceptions))
    if isinstance(error, ModelAPIError):
        passing = (ModelConnectionError, ModelRequestTimeout, ModelServerError)
        return isinstance(error, passing) or type(error) is ModelAPIError
    return not isinstance(error, ContentFilterError)  # an answer that makes no sense


def failure_of(error: Exception, names: Mapping[str, str]) -> RunnerFailed:
    """The failure to tell of. `names`: a model's own name to `provider:model`."""
    if isinstance(error, FallbackExceptionGroup):
        return _failure_of_all([failure_of(one, names) for one in error.exceptions])
    if isinstance(error, ContentFilterError):
        return refusal()
    if not isinstance(error, ModelAPIError):
        return RunnerBusy(f"the model's answer makes no sense: {_shortened(str(error))}")
    name = names.get(error.model_name, error.model_name)
    variable = PROVIDERS.get(name.partition(":")[0], "the provider's key")
    said = _said(error)
    match error:
        case ModelRateLimitError():
            return RunnerBusy(f"{name} is at its rate limit{said}", retry_after_s=error.retry_after)
        case ModelUnavailableError():
            return RunnerBusy(f"{name} is overloaded{said}", retry_after_s=error.retry_after)
        case ModelAuthenticationError():
            # What the provider says may repeat a part of the key.
            return RunnerUnavailable(
                f"the provider of {name} refuses its key{_status(error)}: set {variable} to one "
                "that may use this model"
            )
        case ModelQuotaExceededError():
            return RunnerUnavailable(
                f"the account behind {variable} has used up its credit{said}: top it up"
            )
        case ModelNotFoundError():
            return RunnerUnavailable(
                f"the provider does not know the model {name}{said}: set HEADRACE_MODEL, or the "
                "provider's base URL, to what it serves"
            )
        case ModelContextWindowExceededError():
            return RunnerFailed(
                f"the app and the work on it do not fit into the context of {name}: ask for less "
                "at a time, or set HEADRACE_MODEL to a model with a larger one"
            )
        case ModelRequestRejectedError():
            return RunnerFailed(f"{name} rejects the request{said}")
        case _:
            return RunnerBusy(f"{name} cannot be reached{said or ': ' + type(error).__name__}")


def refusal(said: str = "") -> GoalRefused:
    """The model has been heard to refuse, or its provider's filter has."""
    reason = f": {_shortened(said)}" if said.strip() else ""
    return GoalRefused(f"the model refuses to do this{reason}. Word the goal differently")


def _failure_of_all(failures: list[RunnerFailed]) -> RunnerFailed:
    """Of all models: one that may answer later decides, else the first."""
    said = "; ".join(dict.fromkeys(map(str, failures)))
    busy = [failure for failure in failures if isinstance(failure, RunnerBusy)]
    if busy:
        waits = [one.retry_after_s for one in busy if one.retry_after_s is not None]
        return RunnerBusy(said, retry_after_s=min(waits, default=None))
    return type(failures[0])(said)


def _said(error: ModelAPIError) -> str:
    """`: …` with the provider's own words, and the status."""
    body = error.body
    inner = body.get("error", body) if isinstance(body, Mapping) else None
    message = inner.get("message") if isinstance(inner, Mapping) else None
    words = f": {_shortened(message)}" if isinstance(message, str) and message.strip() else ""
    return _status(error) + words


def _status(error: ModelAPIError) -> str:
    return f" ({error.status_code})" if isinstance(error, ModelHTTPError) else ""


def _shortened(text: str) -> str:
    return " ".join(clean(text).split())[:MAX_SAID_CHARS].rstrip(".")
