"""Rankings made with labeling tools: the records of Argilla and the JSON export of Label Studio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_kit.data.faults import is_list
from rlhf_kit.data.groups import Row
from rlhf_kit.data.interchange.records import Skip, Tally, asked, each, mappings, ranks_from, take
from rlhf_kit.data.interchange.sides import left_and_right, quoted
from rlhf_kit.data.labelers import by_list

_NOBODY = "00000000-0000-0000-0000-000000000000"  # Argilla wants a user; this one is read as no labeler
_UNSORTED = "_"  # Label Studio's name of the list that items are dragged out of


@each
def read_argilla(record: Any, tally: Tally) -> Iterator[Row]:
    """Responses to a RankingQuestion whose options are the names of the fields with the answers; a row a user.

    Read are the records of `to_json`, the flat ones of `to_datasets`, and those of the server, which alone keep ties.
    """
    fields = record.get("fields") if isinstance(record, Mapping) else None
    fields = fields if isinstance(fields, Mapping) else take(record, Mapping)
    rankings = [answer for answer in _responses(record) if _is_ranking(answer["value"], fields)]
    if not rankings:
        raise Skip("no response that ranks the fields")
    for answer in rankings:
        if answer["status"] not in (None, "submitted"):
            tally.left_out["a response that was not submitted"] += 1
            continue
        names, ranks = _order(answer["value"])
        row = asked(_shown(fields), names, tally) | {"completions": [fields[name] for name in names], "ranks": ranks}
        yield row if answer["user"] in (None, "None", _NOBODY) else row | {"labeler": str(answer["user"])}


def _shown(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with text or messages; a flat record has ids, metadata and responses among them."""
    return {
        name: value
        for name, value in fields.items()
        if "." not in name
        and name not in ("id", "_server_id", "status")
        and (isinstance(value, str) or is_list(value))
    }


def _responses(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """`value`, `user` and `status` of every response to every question, in whichever of the three forms they stand."""
    responses = record.get("responses")
    if isinstance(responses, Mapping):  # {question: [response of a user, ...]}
        for answer in [answer for answers in responses.values() for answer in mappings(answers)]:
            yield {"value": answer.get("value"), "user": answer.get("user_id"), "status": answer.get("status")}
    for response in mappings(responses):  # [{"values": {question: response}} of a user, ...]
        values = response.get("values")
        for answer in mappings(list(values.values()) if isinstance(values, Mapping) else None):
            value = answer.get("value")
            yield {"value": value, "user": response.get("user_id"), "status": response.get("status")}
    for name in [name for name in record if name.endswith(".responses") and is_list(record[name])]:
        users, states = record.get(f"{name}.users"), record.get(f"{name}.status")
        for at, value in enumerate(record[name]):
            yield {"value": value, "user": _at(users, at), "status": _at(states, at)}


def _at(values: Any, at: int) -> Any:
    return values[at] if is_list(values) and at < len(values) else None


def _order(value: Sequence[Any]) -> tuple[list[str], list[int]]:
    """(names, ranks) of options best first, or of options with their ranks."""
    if all(isinstance(option, Mapping) for option in value):
        names = [option.get("value") for option in value]
        ranks = [option.get("rank") for option in value]
        if all(isinstance(rank, int) for rank in ranks):
            return names, ranks_from(ranks)
        return names, list(range(1, len(names) + 1))
    return list(value), list(range(1, len(value) + 1))


def _is_ranking(value: Any, fields: Mapping[str, Any]) -> bool:
    return is_list(value) and len(value) > 1 and all(isinstance(n, str) and n in fields for n in _order(value)[0])


def write_argilla(rows: Sequence[Mapping[str, Any]], skipped: Counter) -> list[Row]:
    """Records for `dataset.records.from_json`, one a list with the responses of all its labelers.

    There an order is a list of options, best first. As soon as one ranking has ties, all records are of the server's
    form (items of `POST records/bulk`), where options have ranks.
    """
    ties = any(len(set(row["ranks"])) < len(set(row["completions"])) for row in rows)
    return [_argilla_record(number, same, ties) for number, same in enumerate(by_list(rows), start=1)]


def _argilla_record(number: int, same: Sequence[Mapping[str, Any]], ties: bool) -> Row:
    names = {text: f"response-{at}" for at, text in enumerate(dict.fromkeys(same[0]["completions"]), start=1)}
    fields = {"prompt": same[0]["prompt"], **{name: text for text, name in names.items()}}
    responses = []
    for row in same:
        ranked = sorted(zip(row["ranks"], row["completions"], strict=True), key=lambda pair: pair[0])
        rank_of = {names[text]: rank for rank, text in ranked}  # best first; a text given twice is one answer
        user = {"user_id": row.get("labeler") or _NOBODY}
        if ties:
            value = [{"value": name, "rank": rank} for name, rank in rank_of.items()]
            responses.append(user | {"values": {"ranking": {"value": value}}, "status": "submitted"})
        else:
            responses.append(user | {"value": list(rank_of)})
    if ties:
        return {"external_id": str(number), "fields": fields, "metadata": {}, "responses": responses}
    empty = {"metadata": {}, "suggestions": {}, "vectors": {}, "_server_id": None}
    return {"id": str(number), "fields": fields, "responses": {"ranking": responses}} | empty


@each
def read_label_studio(record: Any, tally: Tally, sides: tuple[str, str] | None = None) -> Iterator[Row]:
    """A task with its annotations (the export "JSON", not "JSON-MIN"), a row an annotation.

    A `Ranker` gives the ids of a `List`'s items, best first, or buckets: named by numbers they are ranks, and items in
    one tie; a single one holds the order. Items in no bucket were not ranked. `Pairwise` gives the left or right of
    two texts, whose fields are `sides`, or are told by their names (the database may reorder a task's fields).
    """
    data, annotations = take(record, Mapping, "data"), take(record, list, "annotations")
    if not annotations:
        raise Skip("no annotation")
    for annotation in annotations:
        try:
            row = _annotated(annotation, data, tally, sides)
        except Skip as reason:
            tally.left_out[str(reason)] += 1
            continue
        who = annotation.get("completed_by")
        who = (who.get("email") or who.get("id")) if isinstance(who, Mapping) else who
        yield row if who is None else row | {"labeler": str(who)}


def _annotated(annotation: Any, data: Mapping[str, Any], tally: Tally, sides: tuple[str, str] | None) -> Row:
    if take(annotation, Mapping).get("was_cancelled"):
        raise Skip("a cancelled annotation")
    results = mappings(take(annotation, list, "result"))
    judged = [result for result in results if result.get("type") in ("ranker", "pairwise")]
    if len(judged) != 1:
        raise Skip("an annotation with several of Ranker and Pairwise" if judged else "no Ranker or Pairwise")
    if judged[0]["type"] == "ranker":
        return _ranker(judged[0], data, tally)
    return _pairwise(judged[0], data, tally, sides)


def _ranker(result: Mapping[str, Any], data: Mapping[str, Any], tally: Tally) -> Row:
    ranked = _ranked_ids(take(result, (list, Mapping), "value", "ranker"))
    lists = {
        name: {str(item["id"]): item.get("body") or item.get("title") for item in items}
        for name, items in data.items()
        if is_list(items) and items and all(isinstance(item, Mapping) and "id" in item for item in items)
    }
    if not lists:
        raise Skip("no list of items with ids")
    fits = [name for name, texts in lists.items() if all(item in texts for item, _ in ranked)]
    if not fits:
        raise Skip("an id that belongs to no item")
    name = fits[0] if len(fits) == 1 else result.get("to_name")
    if name not in fits:
        raise Skip(f"a Ranker of one of several lists ({quoted(fits)})")
    return asked(data, lists, tally) | {
        "completions": [lists[name][item] for item, _ in ranked],
        "ranks": ranks_from([rank for _, rank in ranked]),
    }


def _ranked_ids(order: Sequence[str] | Mapping[str, Sequence[str]]) -> list[tuple[str, int]]:
    """(id, rank), best first."""
    if not isinstance(order, Mapping):
        return [(str(item), rank) for rank, item in enumerate(order, start=1)]
    buckets = {name: ids for name, ids in order.items() if is_list(ids) and ids and name != _UNSORTED}
    if all(name.isdecimal() for name in buckets):
        ranked = [(str(item), int(name)) for name, ids in buckets.items() for item in ids]
        return sorted(ranked, key=lambda item: item[1])
    if len(buckets) != 1:
        raise Skip("several buckets whose names are not ranks")
    return [(str(item), rank) for ids in buckets.values() for rank, item in enumerate(ids, start=1)]


def _pairwise(result: Mapping[str, Any], data: Mapping[str, Any], tally: Tally, sides: tuple[str, str] | None) -> Row:
    selected = take(result, str, "value", "selected")
    if selected not in ("left", "right"):
        raise Skip("a Pairwise with neither side selected")
    shown = {name: value for name, value in data.items() if isinstance(value, str) or is_list(value)}
    left, right = sides or left_and_right(result.get("to_name"), list(shown))
    row = asked(shown, (left, right), tally)
    texts = [take(shown, (str, list), left), take(shown, (str, list), right)]
    choice = "as asked" if sides else "by their names; override with --sides LEFT RIGHT"
    tally.noted[f"`{left}` was shown on the left, `{right}` on the right ({choice})"] += 1
    return row | {"completions": texts if selected == "left" else texts[::-1], "ranks": [1, 2]}


def write_label_studio(rows: Sequence[Mapping[str, Any]], skipped: Counter) -> list[Row]:
    """Tasks for a `List` named "answers" and its `Ranker` "rank", one a list, an annotation a labeler.

    Rankings with ties are written in buckets named 1, 2, ...
    """
    tasks = []
    for number, same in enumerate(by_list(rows), start=1):
        texts = list(dict.fromkeys(same[0]["completions"]))
        items = [{"id": f"answer_{at}", "title": f"Answer {at}", "body": text} for at, text in enumerate(texts, 1)]
        annotations = []
        for row in same:
            rank_of = dict(zip(row["completions"], row["ranks"], strict=True))
            ids = sorted((rank_of[text], texts.index(text)) for text in texts)
            buckets: dict[str, list[str]] = {}
            for rank, at in ids:
                buckets.setdefault(str(rank), []).append(items[at]["id"])
            ties = len(buckets) < len(texts)
            value = buckets if ties else [items[at]["id"] for _, at in ids]
            result = {"from_name": "rank", "to_name": "answers", "type": "ranker", "value": {"ranker": value}}
            annotations.append({"result": [result], "was_cancelled": False, "ground_truth": False} | _signed(row))
        tasks.append({"id": number, "data": {"prompt": same[0]["prompt"], "items": items}, "annotations": annotations})
    return tasks


def _signed(row: Mapping[str, Any]) -> Row:
    """Label Studio knows its users by number or by e-mail."""
    who = row.get("labeler")
    if who is None:
        return {}
    return {"completed_by": int(who) if who.isdecimal() else {"email": who}}
