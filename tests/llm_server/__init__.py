"""A loopback server that speaks the protocols of model providers; its model follows a script.

Anthropic's Messages API and OpenAI's Responses and Chat Completions APIs, streamed and whole, so
that the real client libraries can stand on it. Requests are held to the providers' rules: a
conversation that they would refuse is refused here.

    python -m tests.llm_server        prints the settings that lead to it; builds a small app
    from tests.llm_server import LLMServer
"""

from tests.llm_server.server import LLMServer
from tests.llm_server.turns import Asked, Call, Flood, Say, Status, Turn

__all__ = ["Asked", "Call", "Flood", "LLMServer", "Say", "Status", "Turn"]
