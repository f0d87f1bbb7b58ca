"""Published datasets of comparisons, as their files are: read only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_kit.data.groups import Row
from rlhf_kit.data.interchange.records import Skip, Tally, each, mappings, ranks_from, take

_DOUBTFUL = "an `overall_score` of 10 that may be a 1"
_ROLES = {"prompter": "user", "assistant": "assistant"}


@each
def read_summaries(record: Any, tally: Tally) -> Iterator[Row]:
    """OpenAI's comparisons of summaries (arXiv:2009.01325): `info`, `summaries`, `choice`, `worker`.

    The prompt is the one their models were given, whole; the labeler is the worker.
    """
    post, subreddit = take(record, str, "info", "post"), take(record, str, "info", "subreddit")
    title = str(record["info"].get("title") or "")
    texts = [take(summary, str, "text").strip() for summary in take(record, list, "summaries")]
    choice = take(record, int, "choice")
    if not 0 <= choice < len(texts):
        raise Skip("a `choice` that matches none of the summaries")
    row = {
        "prompt": f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title.strip()}\n\nPOST: {post.strip()}\n\nTL;DR:",
        "completions": texts,
        "ranks": [1 if at == choice else 2 for at in range(len(texts))],
    }
    yield row | ({"labeler": str(record["worker"])} if record.get("worker") else {})


@each
def read_webgpt(record: Any, tally: Tally) -> Iterator[Row]:
    """WebGPT's comparisons (arXiv:2112.09332): `question.full_text`, `answer_0`, `score_0`, ...; equal scores tie."""
    yield {
        "prompt": take(record, str, "question", "full_text").strip(),
        "completions": [take(record, str, f"answer_{at}").strip() for at in (0, 1)],
        "ranks": ranks_from([-take(record, (int, float), f"score_{at}") for at in (0, 1)]),
    }


@each
def read_ultrafeedback(record: Any, tally: Tally) -> Iterator[Row]:
    """UltraFeedback (arXiv:2310.01377): `instruction` and `completions`, ranked by their scores; equal scores tie.

    The score is `overall_score`; where some answer has none, or a 10 that may be a 1, `fine-grained_score`, or the
    mean of its ratings.
    """
    completions = take(record, list, "completions")
    texts = [take(completion, str, "response").strip() for completion in completions]
    doubtful = any(map(_is_doubtful, completions))
    for name in ("overall_score", "fine-grained_score", None):
        scores = [_number(completion.get(name)) if name else _mean_rating(completion) for completion in completions]
        if None not in scores and not (doubtful and name == "overall_score"):
            break
    else:
        raise Skip(f"{_DOUBTFUL}, and no ratings to tell" if doubtful else "an answer without a score")
    tally.noted[f"{_DOUBTFUL}: ranked by the mean ratings"] += doubtful
    prompt = take(record, str, "instruction").strip()
    yield {"prompt": prompt, "completions": texts, "ranks": ranks_from([-score for score in scores])}


def _is_doubtful(completion: Mapping[str, Any]) -> bool:
    """Whether an overall score of 10 is not borne out by the ratings (of 1 to 5).

    The first release had stored the scores of 1 as 10 (OpenBMB/UltraFeedback, issue 8). Its authors put right those
    with a mean rating of at most 2, kept those above 4, and had the others scored again; their repaired release has
    the mean as `fine-grained_score`.
    """
    if _number(completion.get("overall_score")) != 10:
        return False
    repaired, mean = _number(completion.get("fine-grained_score")), _mean_rating(completion)
    mean = repaired if mean is None else mean
    return mean is None or mean <= (4 if repaired is None else 2)


def _mean_rating(completion: Mapping[str, Any]) -> float | None:
    aspects = completion.get("annotations")
    if not isinstance(aspects, Mapping):
        return None
    ratings = [_number(aspect.get("Rating")) for aspect in mappings(list(aspects.values()))]
    known = [rating for rating in ratings if rating is not None]  # a rating may be "N/A"
    return sum(known) / len(known) if known else None


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


@each
def read_oasst(record: Any, tally: Tally) -> Iterator[Row]:
    """Trees of OpenAssistant (arXiv:2304.07327), one a line: `prompt`, a message with `replies`, and so on.

    Wherever two replies of the assistant or more have a `rank` (0 = best) they are a list, and the messages above them
    the prompt. What was deleted or rejected in review is left out with all that answers it.
    """
    yield from _ranked_replies(take(record, Mapping, "prompt"), [], tally)


def _ranked_replies(node: Mapping[str, Any], above: Sequence[Row], tally: Tally) -> Iterator[Row]:
    if node.get("deleted") or node.get("review_result") is False:
        tally.left_out["a message deleted or rejected in review"] += 1
        return
    role = str(node.get("role"))
    messages = [*above, {"role": _ROLES.get(role, role), "content": node.get("text")}]
    replies = mappings(node.get("replies"))
    ranked = [
        reply
        for reply in replies
        if reply.get("role") == "assistant"
        and isinstance(reply.get("rank"), int)
        and not reply.get("deleted")
        and reply.get("review_result") is not False
    ]
    if len(ranked) > 1:
        ranks = ranks_from([reply["rank"] for reply in ranked])
        yield {"prompt": messages, "completions": [reply.get("text") for reply in ranked], "ranks": ranks}
    elif any(reply.get("role") == "assistant" for reply in replies):
        tally.left_out["fewer than two ranked answers"] += 1
    for reply in replies:
        yield from _ranked_replies(reply, messages, tally)
