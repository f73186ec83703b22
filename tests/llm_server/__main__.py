"""`python -m tests.llm_server`: serve a model that builds small apps, and print how to use it."""

import signal
import sys
import threading

from tests.llm_server.builder import builder
from tests.llm_server.server import LLMServer


def main() -> None:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with LLMServer(builder) as server:
        lines = {
            "HEADRACE_RUNNER": "llm",
            "HEADRACE_MODEL": "anthropic:claude-haiku-4-5",
            "HEADRACE_FALLBACK_MODELS": "openai:gpt-5-mini,openai-chat:gpt-5-mini",
            "ANTHROPIC_API_KEY": server.api_key,
            "ANTHROPIC_BASE_URL": server.url,
            "OPENAI_API_KEY": server.api_key,
            "OPENAI_BASE_URL": f"{server.url}/v1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        sys.stdout.writelines(f"export {name}='{value}'\n" for name, value in lines.items())
        sys.stdout.flush()
        stop.wait()


if __name__ == "__main__":
    main()
