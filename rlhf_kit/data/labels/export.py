"""A store of labels as files: rankings in every format that can carry them, thumbs, the best, a data card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rlhf_kit.data.groups import Row
from rlhf_kit.data.interchange import FORMATS, WRITABLE, lines
from rlhf_kit.data.labelers import merge
from rlhf_kit.data.labels import reader, schema
from rlhf_kit.data.labels.store import Store
from rlhf_kit.errors import UserError
from rlhf_kit.references import imported

RANKINGS, THUMBS, BEST = WRITABLE, "thumbs", "best"
FORMS = (*RANKINGS, THUMBS, BEST)


class Files:
    """What a store's labels are in each of FORMS.

    Args:
        anonymise: numbers in place of the labelers' names, no comments.
        method: of `labelers.METHODS`, to make one ranking of all labelers' of a list.
    """

    def __init__(self, store: Store, anonymise: bool = False, method: str | None = None):
        self.store, self.method = Anonymous(store) if anonymise else store, method

    def records(self, form: str) -> Sequence[Row]:
        """Raises UserError where the store has nothing for the form."""
        if form in (THUMBS, BEST):
            records = (reader.thumbs if form == THUMBS else reader.best)(self.store)
        else:
            rows = reader.rankings_with_models(self.store)
            records = FORMATS[form].write(merge(rows, self.method) if self.method else rows, Counter())
        if not records:
            raise UserError(f"{self.store.name} has nothing to export as {form} yet.")
        return records

    def lines(self, form: str) -> str:
        """The records as JSON lines."""
        return "".join(lines(self.records(form)))

    def data_card(self) -> str:
        return data_card(self.store)


class Anonymous(Store):
    """A store whose labelers have numbers for names, in the order they came."""

    def __init__(self, store: Store):
        super().__init__(store.engine, store.name)

    def labelers(self) -> dict[int, tuple[str, str]]:
        named = super().labelers()
        return {number: (f"labeler-{at}", role) for at, (number, (_, role)) in enumerate(named.items(), start=1)}


def data_card(store: Store) -> str:
    """Markdown: how many labels by how many people, how far they agree, what a reward model can reach."""
    report = imported("rlhf_kit.data.labels.agreement:report_of", "feedback")(store)
    counts = Counter(each.kind for each in store.decisions())
    tasks, latest = store.tasks(), store.guidelines()
    agreement, ceiling = report.agreement, report.ceiling

    def bounds(measure) -> str:
        if measure.value != measure.value:
            return "not measured"
        low, high = measure.interval or (measure.value, measure.value)
        return f"{measure.value:.3f} [{low:.3f}, {high:.3f}] (n = {measure.n:,})"

    card = [
        "# Labels",
        "",
        f"- tasks: {len(tasks):,} ({sum(task.mode == schema.GOLD for task in tasks.values()):,} with known answers)",
        *(f"- {kind}: {count:,}" for kind, count in sorted(counts.items())),
        f"- labelers: {len(report.labelers):,}",
        f"- guidelines: {'version ' + str(latest[0]) if latest else 'none'}",
        f"- pairs that two labelers order alike: {bounds(agreement)}",
        f"- answers to which two labelers give the same thumb: {bounds(report.thumbs)}",
        f"- Kendall's tau-b: {bounds(report.tau)}",
        f"- Krippendorff's alpha, ordinal: {bounds(report.alpha)}",
        f"- a reward model can reach at most: {'not known' if ceiling is None else f'{ceiling:.1%}'}",
        f"- rank with place shown, tau-b: {bounds(report.position)}",
        f"- rank with length, tau-b: {bounds(report.length)}",
    ]
    return "\n".join(card) + "\n"
