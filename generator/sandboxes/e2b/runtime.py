"""Sandboxes in the E2B cloud, through E2B's own SDK."""

import re
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from uuid import uuid4

import anyio
import structlog
from e2b import ApiParams, AsyncSandbox, SandboxException, SandboxQuery, SandboxState

from generator.errors import SandboxError, SandboxGone, SandboxUnavailable
from generator.sandbox import SandboxInfo
from generator.sandboxes.e2b.errors import translated
from generator.sandboxes.e2b.sandbox import E2BSandbox

_SANDBOX_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_METADATA = re.compile(r"[a-z0-9_-]{1,64}")

WOKEN_S = 300
"""How long one that was paused lives at least when it is connected to."""

KILL_TRIES = 3
_KILL_PAUSE_S = 0.3

log = structlog.get_logger()


class E2BRuntime:
    """Makes, finds and ends sandboxes of one E2B account.

    `preview_url` is a `str.format` template of a preview's address over `host` (E2B's own name for
    a port of a sandbox), `sandbox_id` and `port`. `api_url` and `sandbox_url` lead to another
    server than E2B's.
    """

    def __init__(
        self,
        api_key: str,
        *,
        template: str = "base",
        domain: str | None = None,
        api_url: str | None = None,
        sandbox_url: str | None = None,
        preview_url: str = "https://{host}",
        request_timeout_s: float = 30,
    ) -> None:
        self._template = template
        self._preview_url = preview_url
        self._request_timeout_s = request_timeout_s
        self._account: ApiParams = {
            "api_key": api_key,
            "domain": domain,
            "api_url": api_url,
            "sandbox_url": sandbox_url,
            "request_timeout": request_timeout_s,
            "debug": False,  # E2B_DEBUG would make creating and killing a pretence
        }

    @property
    def provider(self) -> str:
        return "e2b"

    @property
    def can_pause(self) -> bool:
        return True

    async def prepare(self) -> None:
        """E2B has some ready for everybody."""

    async def create(self, *, metadata: Mapping[str, str], timeout_s: int) -> E2BSandbox:
        checked = _checked(metadata)
        async with self._calling("create a sandbox"):
            try:
                sdk = await AsyncSandbox.create(
                    self._template,
                    timeout=timeout_s,
                    metadata=checked,
                    # The SDK tries again after 429 and 5xx, some of which come after the fact.
                    # A key for each call: that of an earlier one would be answered with its
                    # sandbox, which may have ended since.
                    idempotency_key=str(uuid4()),
                    **self._account,
                )
            except SandboxException as error:
                if error.status_code in (400, 404):
                    raise SandboxUnavailable(
                        f"E2B refuses a sandbox of template {self._template!r}"
                        f" for {timeout_s} s: {error}"
                    ) from error
                raise
        return self._sandbox(sdk)

    async def connect(self, sandbox_id: str) -> E2BSandbox:
        _check_id(sandbox_id)
        async with self._calling("find a sandbox", sandbox_id):
            info = await AsyncSandbox.get_info(sandbox_id, **self._account)
        # Connecting asks for a time to live. E2B extends but never shortens, by default to 300 s
        # from now; older versions set it. What is left, rounded down, moves the end in neither.
        # One that is paused has no end to be moved.
        left_s = int((info.end_at - datetime.now(UTC)).total_seconds())
        if info.state is SandboxState.PAUSED:
            left_s = max(left_s, WOKEN_S)
        if left_s < 1:
            raise SandboxGone(sandbox_id)
        async with self._calling("connect to a sandbox", sandbox_id):
            sdk = await AsyncSandbox.connect(sandbox_id, timeout=left_s, **self._account)
        return self._sandbox(sdk)

    async def pause(self, sandbox_id: str) -> None:
        _check_id(sandbox_id)
        async with self._calling("pause a sandbox", sandbox_id):
            await AsyncSandbox.pause(sandbox_id, **self._account)  # False: it is paused already

    async def wake(self, sandbox_id: str, *, timeout_s: int) -> datetime:
        _check_id(sandbox_id)
        async with self._calling("wake a sandbox", sandbox_id):
            await AsyncSandbox.connect(sandbox_id, timeout=timeout_s, **self._account)
            # Connecting wakes it, and only ever extends what it has left.
            await AsyncSandbox.set_timeout(sandbox_id, timeout_s, **self._account)
            return (await AsyncSandbox.get_info(sandbox_id, **self._account)).end_at

    async def kill(self, sandbox_id: str) -> bool:
        if not _SANDBOX_ID.fullmatch(sandbox_id):
            return False
        for tries in range(1, KILL_TRIES + 1):
            try:
                async with self._calling("end a sandbox"):
                    # What an unconfirmed try has ended is not there any more: that confirms it.
                    return await AsyncSandbox.kill(sandbox_id, **self._account)
            except SandboxError as error:
                if tries == KILL_TRIES or not error.may_pass:
                    raise
                log.warning("kill_not_confirmed", sandbox=sandbox_id, tries=tries, error=str(error))
                await anyio.sleep(_KILL_PAUSE_S * tries)
        raise AssertionError("the loop ends by returning or raising")

    async def list(self, metadata: Mapping[str, str]) -> list[SandboxInfo]:
        found: list[SandboxInfo] = []
        pages = AsyncSandbox.list(query=SandboxQuery(metadata=_checked(metadata)), **self._account)
        while pages.has_next:
            async with self._calling("list sandboxes"):
                page = await pages.next_items()
            found += [
                SandboxInfo(
                    info.sandbox_id,
                    info.metadata,
                    started_at=info.started_at,
                    ends_at=info.end_at,
                    is_paused=info.state is SandboxState.PAUSED,
                )
                for info in page
            ]
        return found

    async def close(self) -> None:
        """Nothing was prepared."""

    def _calling(
        self, doing: str, sandbox_id: str | None = None
    ) -> AbstractAsyncContextManager[None]:
        return translated(doing, deadline_s=self._request_timeout_s, sandbox_id=sandbox_id)

    def _sandbox(self, sdk: AsyncSandbox) -> E2BSandbox:
        return E2BSandbox(
            sdk, preview_url=self._preview_url, request_timeout_s=self._request_timeout_s
        )


def _check_id(sandbox_id: str) -> None:
    """Ids go into paths as they are. Raises `SandboxGone` for what cannot be one."""
    if not _SANDBOX_ID.fullmatch(sandbox_id):
        raise SandboxGone(sandbox_id)


def _checked(metadata: Mapping[str, str]) -> dict[str, str]:
    """A copy, as the SDK wants it; other characters would not survive its double encoding."""
    for word in (*metadata, *metadata.values()):
        if not _METADATA.fullmatch(word):
            raise ValueError(f"metadata {word!r} must match [a-z0-9_-]{{1,64}}")
    return dict(metadata)
