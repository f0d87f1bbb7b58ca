"""An answer as the page Chat is sent it: lines of JSON, and at the end a proof of who wrote what."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool

from rlhf_kit.chat.speakers import Settings, Speaker, Speakers
from rlhf_kit.data.messages import Message
from rlhf_kit.errors import UserError
from rlhf_kit.escaping import terminal
from rlhf_kit.generation.engine import Busy, Closed
from rlhf_kit.hashes import text_hash
from rlhf_kit.serving.proof import prove

logger = logging.getLogger(__name__)


async def lines(
    speakers: Speakers, name: str, turns: Sequence[Message], drawn: dict[str, Any], key: str
) -> AsyncIterator[str]:
    """First whether the model `chats`, then its `text` as it comes, with the last `finish`; or an `error`.

    Args:
        drawn: of Settings. key: that signs proofs.
    """
    try:
        settings = Settings(**drawn)
        speaker = await run_in_threadpool(speakers.__getitem__, name)
        ids = await run_in_threadpool(speaker.encode, turns)
        context = speaker.engine.context
        if context is not None and len(ids) >= context:
            yield line(error="full", detail=f"{len(ids)} / {context}")
            return
        yield line(chats=speaker.chats)
        fitted, text, count = speaker.fitted(settings, ids), "", 0
        async for said in speaker.hear(ids, fitted):
            text, count = text + said.text, count + 1
            if said.finish is not None:
                is_full = said.finish == "length" and fitted.max_tokens < settings.max_tokens
                proof = await run_in_threadpool(_proof, key, speaker, turns, text, drawn)
                yield line(said.text, finish="full" if is_full else said.finish, tokens=count, proof=proof)
            elif said.text:
                yield line(said.text)
    except UserError as error:
        yield line(error="refused", detail=terminal(error))
    except Exception as error:  # of the model, or of memory
        yield line(error=fault_of(error, name))


def fault_of(error: Exception, model: str) -> str:
    """The name in `CHAT` of what stopped an answer; what nobody foresaw goes to the log too."""
    if isinstance(error, Busy | Closed):
        return "busy" if isinstance(error, Busy) else "closing"
    logger.error("%s gave no answer", model, exc_info=error)
    return "failed"


def line(text: str = "", **more: Any) -> str:
    """`shown`: of a text in which something stands by its number."""
    shown = terminal(text)
    own = ({"text": text} if text else {}) | ({"shown": shown} if shown != text else {})
    return json.dumps(own | more) + "\n"


def _proof(key: str, speaker: Speaker, turns: Sequence[Message], text: str, drawn: dict[str, Any]) -> str | None:
    """None of an empty answer, of which there is nothing to keep."""
    source = {"model": speaker.name, "model_hash": speaker.model_hash, **drawn}
    settings = text_hash(repr(sorted(drawn.items())))
    return prove(key, turns, text.strip(), source | {"settings": settings}) if text.strip() else None
