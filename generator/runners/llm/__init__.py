"""The runner whose code a large language model writes. Needs the extra `llm`."""

from generator.runners.llm.conversation import Bounds
from generator.runners.llm.models import PROVIDERS, Access
from generator.runners.llm.prices import Price
from generator.runners.llm.runner import LLMRunner

__all__ = ["PROVIDERS", "Access", "Bounds", "LLMRunner", "Price"]
