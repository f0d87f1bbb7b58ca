"""A vLLM server over HTTP. Every call ends: with an answer, or with an error that names server, call and what to do.

The paths are vLLM's own, as of 0.32: those under /v1 are OpenAI's, the others need VLLM_SERVER_DEV_MODE=1.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple

import httpx2

from rlhf_kit.errors import UserError

KEY = "VLLM_API_KEY"  # of the environment, as the server's own
HEALTH_EVERY, HEALTH_LIMIT = 2.0, 20.0  # seconds: how often a server at work is asked whether it is, and how long
MOST_OPEN = 256  # connections
PROCESSED = "processed_logprobs"  # the mode in which log-probs are those of the draw
LOGPROBS = re.compile(r"\blogprobs_mode\W+(\w+)")
LONGEST_TOLD = 300  # characters of a server's own words


class VLLMError(UserError):
    """What went wrong between a run and its server; `fault` names it in few words, as "dead server"."""

    status = 1

    def __init__(self, url: str, fault: str, message: str):
        super().__init__(f"vLLM at {url}: {fault}. {message}")
        self.fault, self.parts = fault, (url, fault, message)

    def __reduce__(self):
        return type(self), self.parts  # to the other processes


class Call(NamedTuple):
    """One request: what is asked, and the body that is sent as JSON."""

    method: str
    path: str
    body: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Server:
    """A vLLM server.

    Args:
        url: as http://localhost:8000. timeout: seconds that a call may take.
    """

    def __init__(self, url: str, timeout: float):
        self.url, self.timeout = url.rstrip("/"), timeout
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- what it is asked -------------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One answer: JSON, or None where there is none."""
        return self._wait(self._all([Call(method, path, body)], 1))[0]

    def complete(self, bodies: Sequence[dict[str, Any]], at_once: int = MOST_OPEN) -> list[dict[str, Any]]:
        """The one choice of each request, in order; at most `at_once` are under way."""
        answers = self._wait(self._all([Call("POST", "/v1/completions", body) for body in bodies], at_once))
        try:
            return [answer["choices"][0] for answer in answers]
        except (KeyError, IndexError, TypeError):
            raise self.foreign("POST /v1/completions", "`choices`") from None

    def model(self) -> tuple[str, int]:
        """The name of its model, and how many tokens that reads at once."""
        answer = self.ask("GET", "/v1/models")
        try:
            card = next(card for card in answer["data"] if not card.get("parent"))
            return str(card["id"]), int(card["max_model_len"])
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
            raise self.foreign("GET /v1/models", "a model with `id` and `max_model_len`") from None

    def logprobs_mode(self) -> str | None:
        """Its --logprobs-mode, wherever in its configuration this version tells it; None: nowhere."""
        mode = LOGPROBS.search(json.dumps(self.ask("GET", "/server_info?config_format=json")))
        return mode[1] if mode else None

    def takes_adapters(self) -> bool:
        """Whether adapters can be put on its model while it runs."""
        try:
            self.ask("POST", "/v1/load_lora_adapter", {})
        except VLLMError as error:
            if error.fault == NO_PATH:
                return False
            if error.fault != REFUSED:  # an adapter without name and path
                raise
        return True

    def foreign(self, call: str, lacks: str) -> VLLMError:
        return VLLMError(self.url, "not vLLM", f"The answer to {call} lacks {lacks}. Give the URL of a vLLM server.")

    # --- how --------------------------------------------------------------------------------------------------------

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What `work` returns, in a thread of its own: a notebook runs a loop in this one."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl+C too: nothing is left under way
            future.cancel()
            raise

    async def _all(self, calls: Sequence[Call], at_once: int) -> list[Any]:
        key = os.environ.get(KEY)
        options: dict[str, Any] = {"headers": {"Authorization": f"Bearer {key}"}} if key else {}
        options["verify"] = self.url.startswith("https:")  # to read the certificates takes longer than a call
        room = asyncio.Semaphore(at_once)
        try:
            # A proxy of the environment is for what lies outside; time limits are those of `_one`.
            async with httpx2.AsyncClient(
                trust_env=False, timeout=None, limits=httpx2.Limits(max_connections=MOST_OPEN + 1), **options
            ) as client:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._one(client, call, self.timeout, room)) for call in calls]
                    watch = group.create_task(self._watch(client))
                    await asyncio.wait(tasks)
                    watch.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _watch(self, client: httpx2.AsyncClient) -> None:
        """Ends a long call to a server that has stopped."""
        limit = min(HEALTH_LIMIT, self.timeout)
        while True:
            await asyncio.sleep(min(HEALTH_EVERY, self.timeout))
            await self._one(client, Call("GET", "/health"), limit, asyncio.Semaphore(1))

    async def _one(self, client: httpx2.AsyncClient, call: Call, limit: float, room: asyncio.Semaphore) -> Any:
        try:
            async with room, asyncio.timeout(limit):
                answer = await client.request(call.method, self.url + call.path, json=call.body)
        except TimeoutError:
            raise VLLMError(
                self.url,
                SLOW,
                f"{call} has no answer after {limit:g} s. Look at its log: is it busy, or does it hang? Where it "
                "needs longer, raise vllm_timeout; fewer requests at once: generation_batch_size.",
            ) from None
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
            raise UserError(f"vllm_url={self.url!r}: {error} Give a URL as http://localhost:8000.") from None
        except httpx2.HTTPError as error:
            raise VLLMError(
                self.url,
                DEAD,
                f"{call} failed: {str(error) or type(error).__name__}. Look whether `vllm serve` runs there, and at "
                "its log; a run with checkpoints goes on with --resume_from_checkpoint.",
            ) from None
        if answer.status_code >= 400:
            raise self._refusal(call, answer)
        try:
            return answer.json() if answer.content else None
        except ValueError:
            return None  # words, as of an adapter that is loaded

    def _refusal(self, call: Call, answer: httpx2.Response) -> VLLMError:
        told = f"{call} was answered {answer.status_code}: {_words(answer)}"
        if answer.status_code in (401, 403):
            return VLLMError(self.url, "no access", f"{told} Set {KEY} in this run's environment to the server's key.")
        if answer.status_code == 404 and not call.path.startswith("/v1/completions"):
            return VLLMError(
                self.url,
                NO_PATH,
                f"{told} Start the server with VLLM_SERVER_DEV_MODE=1 in its environment, which opens the paths that "
                "hand weights over; vLLM 0.21 to 0.33 have them.",
            )
        if answer.status_code >= 500:
            return VLLMError(self.url, "a failing server", f"{told} Look at its log.")
        return VLLMError(self.url, REFUSED, told)


SLOW, DEAD, NO_PATH, REFUSED = "slow server", "dead server", "no such path", "a refused request"


def _words(answer: httpx2.Response) -> str:
    """What a server says of its refusal."""
    text = answer.text
    try:
        body = json.loads(text)
        body = body.get("error", body) if isinstance(body, dict) else body
        text = str(body.get("message", body.get("detail", body)) if isinstance(body, dict) else body)
    except ValueError:
        pass
    text = " ".join(text.split())[:LONGEST_TOLD] or "nothing more"
    return text if text.endswith(".") else f"{text}."
