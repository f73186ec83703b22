"""Models by name, with the client libraries of their providers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel

from generator.errors import RunnerUnavailable

PROVIDERS: Mapping[str, str] = {
    "anthropic": "ANTHROPIC_API_KEY",
    "openai": "OPENAI_API_KEY",
    "openai-chat": "OPENAI_API_KEY",
}
"""Provider to the variable that its key comes from. `openai` speaks the Responses API;
`openai-chat` the Chat Completions API, as most servers of other makers do.
"""


@dataclass(frozen=True, slots=True)
class Access:
    """How a provider is reached; without a URL at its own."""

    api_key: str = field(repr=False)
    base_url: str | None = None


def model_maker(name: str, access: Mapping[str, Access]) -> Callable[[], Model]:
    """What makes the model `name` (`provider:model`). `access` is by the variable of a key.

    Each run makes its own: connections belong to an event loop, and a run may have one to itself.
    Raises `RunnerUnavailable`.
    """
    provider, _, model = name.partition(":")
    if provider not in PROVIDERS or not model:
        raise RunnerUnavailable(
            f"there is no model {name!r}: a name is `provider:model`, with one of the providers "
            f"{', '.join(PROVIDERS)}"
        )
    way = access.get(PROVIDERS[provider])
    if way is None:
        raise RunnerUnavailable(f"{PROVIDERS[provider]} is not set, which {name} needs")
    # A client library takes seconds to import: that of the provider alone, and now.
    if provider == "anthropic":
        from pydantic_ai.models.anthropic import AnthropicModel
        from pydantic_ai.providers.anthropic import AnthropicProvider

        return lambda: AnthropicModel(
            model, provider=AnthropicProvider(api_key=way.api_key, base_url=way.base_url)
        )
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    kind = OpenAIChatModel if provider == "openai-chat" else OpenAIResponsesModel
    return lambda: kind(model, provider=OpenAIProvider(api_key=way.api_key, base_url=way.base_url))


def first_that_answers(models: Sequence[Model]) -> Model:
    """The models as one: each is asked when those before it refuse or cannot be reached."""
    return models[0] if len(models) == 1 else FallbackModel(*models)
