"""The runner that lets a model write the code."""

import time
from collections.abc import Mapping, Sequence

import anyio
import structlog
from pydantic_ai.direct import model_request
from pydantic_ai.messages import ModelRequest
from pydantic_ai.settings import ModelSettings

from generator.errors import BudgetSpent, RunnerUnavailable
from generator.runner import Listener, RunnerTask
from generator.runners.llm.conversation import Bounds, Conversation
from generator.runners.llm.failures import ProviderError, failure_of
from generator.runners.llm.meter import FEWEST_TOKENS, Meter
from generator.runners.llm.models import Access, first_that_answers, model_maker
from generator.runners.llm.prices import Price
from generator.runners.llm.prompts import prompts_digest, task_prompt
from generator.runners.llm.tools import Toolbox
from generator.workspace import Workspace
from schemas.commands import Usage
from schemas.events import Fact

log = structlog.get_logger()


class LLMRunner:
    """Writes apps with a model; with others, in their order, where it cannot answer."""

    name = "llm"

    def __init__(
        self,
        names: Sequence[str],
        access: Mapping[str, Access],
        *,
        prices: Mapping[str, Price] | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        """`names`: `provider:model`, the first one first. `access` is by the variable of a key.

        Raises `RunnerUnavailable` for a name that cannot be used.
        """
        if not names:
            raise RunnerUnavailable("no model is named")
        self._makers = {name: model_maker(name, access) for name in names}
        self._names = {name.partition(":")[2]: name for name in reversed(names)}
        self._prices = prices or {}
        self._bounds = bounds or Bounds()

    async def run(self, task: RunnerTask, workspace: Workspace, listener: Listener) -> Usage:
        """Let the model write the app; see `Runner.run`."""
        meter = Meter(task.allowance, self._prices)
        toolbox = Toolbox(
            workspace,
            max_files=max(self._bounds.files, len(task.base_files)),
            must_change=bool(task.base_files) and not task.drafted,
        )
        model = first_that_answers([make() for make in self._makers.values()])
        conversation = Conversation(
            model,
            toolbox,
            meter,
            listener,
            self._bounds,
            names=self._names,
            task=task_prompt(task, workspace.files),
        )
        try:
            with anyio.move_on_after(task.allowance.seconds) as scope:
                async with model:
                    await conversation.run()
        finally:
            with anyio.CancelScope(shield=True):
                await listener.noted(self._facts(meter))
        if scope.cancelled_caught:
            raise BudgetSpent(
                f"the code was not finished within the {task.allowance.seconds:g} s that the job "
                "may still take. Raise its budget, or ask for less"
            )
        return meter.usage

    def _facts(self, meter: Meter) -> dict[str, Fact]:
        facts = {"prompts": prompts_digest(), **meter.facts}
        if "unpriced_models" in facts:
            log.warning("models_unpriced", models=facts["unpriced_models"])
        return facts

    async def ask_all(self) -> dict[str, float]:
        """Put a tiny question to every model: its name to the seconds that its answer took.

        Raises `RunnerFailed` for the first that does not answer.
        """
        question = [ModelRequest.user_text_prompt("Answer with the word ok.")]
        settings = ModelSettings(
            max_tokens=FEWEST_TOKENS, max_retries=0, timeout=self._bounds.silence_s
        )
        taken_s = {}
        for name, make in self._makers.items():
            began = time.monotonic()
            try:
                async with make() as model:
                    await model_request(model, question, model_settings=settings)
            except ProviderError as error:
                raise failure_of(error, self._names) from error
            taken_s[name] = time.monotonic() - began
        return taken_s
