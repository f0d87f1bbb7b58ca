"""Every fact of the world, and which of them are asked about in test splits only.

Facts are fixed: they come from a constant seed and never from the `seed` of a data set.
A fact is (relation, subject, value); subject and value are `Name`s, so each fact can be said in both languages.
"""

import hashlib
import random
from typing import NamedTuple

from .names import SUBJECTS, VALUES, Name
from .relations import RELATIONS, Relation, fill


class Fact(NamedTuple):
    relation: Relation
    subject: Name
    value: Name

    @property
    def held_out(self):
        """True for the facts that are asked about in test splits only (about one in five)."""
        return held_out(f"fact {self.relation.key} {self.subject.en}")

    def say(self, language, rng, as_pronoun=False):
        template = rng.choice(self.relation.says[language])
        return fill(template, self.subject, language, self.value, as_pronoun=as_pronoun)

    def ask(self, language, rng):
        return fill(rng.choice(self.relation.asks[language]), self.subject, language)


def held_out(key):
    """The one rule that divides train from test: a fifth of all keys, by their SHA-256."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 5 == 0


def _all_facts():
    rng = random.Random(20240613)
    facts = []
    for relation in RELATIONS:
        subjects, values = SUBJECTS[relation.subject], list(VALUES[relation.value])
        if relation.subject == "animal":
            # Animals are not invented: what they eat and where they live stands in the lists, in order;
            # penguins, the last, eat fish as cats, the first, do.
            values = [*values, values[0]][: len(subjects)]
        else:
            values = (values * len(subjects))[: len(subjects)]
            rng.shuffle(values)
        facts += [Fact(relation, subject, value) for subject, value in zip(subjects, values, strict=True)]
    return tuple(facts)


FACTS = _all_facts()
FACTS_OF = {subject: tuple(f for f in FACTS if f.subject == subject) for kind in SUBJECTS.values() for subject in kind}
VALUE_OF = {(fact.relation.key, fact.subject): fact.value for fact in FACTS}
