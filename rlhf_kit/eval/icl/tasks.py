"""Tasks for learning in context: made here, so that nothing is downloaded and no model has seen the items.

The ten arithmetic tasks and the five of unscrambling words have the ranges and the format of GPT-3 (Brown et al. 2020,
section 3.9, and the items released with it); the words are a list of this file, not the 10,000 of the paper. The
world's tasks ask for what stands in the embedded world's text; items are held out of its training questions.
"""

from __future__ import annotations

import hashlib
import operator
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from rlhf_kit import world
from rlhf_kit.data.chat import Message
from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.world.names import VALUES
from rlhf_kit.world.phrases import WORDS as WORLD_WORDS
from rlhf_kit.world.relations import FACTS, Fact, fill, held_out

ARITHMETIC_ITEMS, ARITHMETIC_POOL = 2000, 1000  # items as in GPT-3
WRONG_CHOICES = 3
SHOWN = 200  # demonstrations of the world that may be shown


@dataclass(frozen=True)
class Example:
    """One question: `prompt` + `answer` is a shot's text. With `choices` (whole answers) the likeliest is taken.

    Of a judged task (`Task.judged`) the answer of an item is "": there is no one right answer.
    """

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """Examples to answer, and those to show before them.

    Attributes:
        separator: stands between examples.
        pool: shots are drawn from it, but never the question itself.
        instruction: stands first.
        stop: ends an answer.
        cue: the last words of every prompt; a choice's unconditional likelihood is that after the cue alone.
        published: the task's name in Table H.1 of GPT-3; "" = none.
        max_new_tokens: the most that is written for an answer.
        judged: right is what the world's truth finds correct (`world.judge`), not what equals the answer.
    """

    name: str
    examples: tuple[Example, ...]
    pool: tuple[Example, ...]
    separator: str
    instruction: str = ""
    stop: tuple[str, ...] = ("\n",)
    cue: str = ""
    published: str = ""
    max_new_tokens: int = 24
    judged: bool = False


def draw_shots(task: Task, number: int, shots: int, seed: int) -> list[Example]:
    """The shots before example `number`: decided by (task, item, K, seed) alone, whoever asks and in whatever order.

    Raises:
        UserError: when the pool has fewer.
    """
    if not shots:
        return []
    question = task.examples[number].prompt
    if shots >= len(task.pool):  # one may be the question itself
        raise UserError(f"{task.name} has {len(task.pool) - 1} examples to show; --shots {shots} is too many.")
    drawn = _random(task.name, number, shots, seed).sample(task.pool, shots + 1)
    return [example for example in drawn if example.prompt != question][:shots]


def render(task: Task, shots: Sequence[Example], example: Example) -> str:
    """The prompt: instruction, shots with their answers, the question."""
    shown = [f"{shot.prompt}{shot.answer}" for shot in shots]
    return task.separator.join([*filter(None, [task.instruction]), *shown, example.prompt])


def messages(task: Task, shots: Sequence[Example], example: Example) -> list[Message]:
    """The prompt in turns: a shot is one of the user and one of the assistant, the instruction opens the first.

    As lm-evaluation-harness's `fewshot_as_multiturn`, but for the instruction, which is a system message there.
    """
    turns = []
    for shot in shots:
        turns += [{"role": "user", "content": shot.prompt}, {"role": "assistant", "content": shot.answer.strip()}]
    turns.append({"role": "user", "content": example.prompt})
    turns[0]["content"] = "\n".join([*filter(None, [task.instruction]), turns[0]["content"]])
    return turns


def _random(*parts: object) -> random.Random:
    return random.Random(int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "big"))


# --- arithmetic -----------------------------------------------------------------------------------------------------

OPERATIONS = {
    "+": ("plus", operator.add),
    "-": ("minus", operator.sub),
    "*": ("times", operator.mul),
}


def _two_numbers(digits: int, sign: str) -> Callable[[random.Random], Example]:
    word, compute = OPERATIONS[sign]

    def example(rng: random.Random) -> Example:
        a, b = rng.randrange(10**digits), rng.randrange(10**digits)
        return _question(f"{a} {word} {b}", compute(a, b))

    return example


def _three_digits(rng: random.Random) -> Example:
    """The first two in parentheses: so are all of the released items, though the paper's text says the last two."""
    a, b, c = (rng.randrange(10) for _ in range(3))
    first, second = rng.choice("+-*"), rng.choice("+-*")
    return _question(f"({a} {first} {b}) {second} {c}", OPERATIONS[second][1](OPERATIONS[first][1](a, b), c))


def _question(asked: str, result: int) -> Example:
    return Example(f"Q: What is {asked}?\n\nA:", f" {result}")


ARITHMETIC = {f"{digits}D{sign}": _two_numbers(digits, sign) for digits in (2, 3, 4, 5) for sign in "+-"}
ARITHMETIC |= {"2Dx": _two_numbers(2, "*"), "1DC": _three_digits}


def _arithmetic(name: str) -> Task:
    rng, found = _random(name), {}
    while len(found) < ARITHMETIC_ITEMS + ARITHMETIC_POOL:
        example = ARITHMETIC[name](rng)
        found.setdefault(example.prompt, example)  # none twice, so none is shown that is asked
    examples = tuple(found.values())
    items, pool = examples[:ARITHMETIC_ITEMS], examples[ARITHMETIC_ITEMS:]
    return Task(name, items, pool, "\n\n", cue="A:", published=name)


# --- words ----------------------------------------------------------------------------------------------------------

WORDS = """
account activity address advantage afternoon against airport although ambition ancient another apartment appetite
argument arrange article attention balance bargain basement battery beautiful believe beneath bicycle birthday blanket
boundary breakfast brother building business cabinet calendar capital captain careful carpenter castle category
ceremony chapter children chocolate citizen climate clothing colony comfort company complete concert condition
confident consider contract corner cottage country courage creature cricket culture curtain customer danger daughter
december decision delicate delivery department describe desert detail develop diamond dictionary different dinner
direction discover distance doctor dolphin double dragon education electric elephant emergency engineer entrance
envelope evening example exercise expensive factory familiar family famous farmer feather february festival finger
flower football foreign forest fortune forward freedom friend furniture future garage garden general gentle gesture
government grandfather grocery guitar hammer handsome harvest healthy helicopter history holiday hospital hundred
hungry husband imagine important increase industry insect instrument interest island january jealous journey judgment
jungle kitchen knowledge ladder language laughter lawyer leather lemonade library listen machine magazine manager
market marriage measure medicine memory message midnight mineral minute mirror mistake monkey morning mother mountain
museum musician mystery narrow natural neighbor newspaper notebook november number observe october officer opinion
orange orchestra ordinary ourselves painter palace parent passenger patient pattern payment peaceful pencil perfect
picture pleasure pocket poetry police popular position potato practice president princess prison problem produce
promise purple quality quarter question railway reader reason recipe remember republic restaurant rhythm science
sculpture season secret september service shadow shelter shoulder silence silver simple soldier spirit station stomach
strange student subject success sugar summer surprise teacher theater thought thunder ticket tomorrow tourist tractor
travel treasure triangle umbrella uncle universe useful vacation valley vegetable victory village violin visitor
volcano weather weekend welcome whisper wisdom wonder writer yesterday
""".split()
LEAST_LETTERS = 6  # so that two are left between the outer four
INSTRUCTION = "Please unscramble the letters into a word, and write that word:"
PUNCTUATION = string.punctuation + " "


def _cycled(rng: random.Random, word: str) -> str:
    turn = rng.randrange(1, len(word))
    return word[turn:] + word[:turn]


def _anagram(outer: int) -> Callable[[random.Random, str], str]:
    def scrambled(rng: random.Random, word: str) -> str:
        inner = word[outer:-outer]
        return word[:outer] + "".join(rng.sample(inner, len(inner))) + word[-outer:]

    return scrambled


def _with_symbols(rng: random.Random, word: str) -> str:
    return "".join(letter + rng.choice(PUNCTUATION) for letter in word[:-1]) + word[-1]


def _reversed(rng: random.Random, word: str) -> str:
    return word[::-1]


UNSCRAMBLE = {  # how a word is spoilt, and the task's name in Table H.1
    "cycle-letters": (_cycled, "Cycled Letters"),
    "anagrams-1": (_anagram(1), "Anagrams 1"),
    "anagrams-2": (_anagram(2), "Anagrams 2"),
    "symbol-insertion": (_with_symbols, "Symbol Insertion"),
    "reversed-words": (_reversed, "Reversed Words"),
}


def _unscramble(name: str) -> Task:
    spoil, published = UNSCRAMBLE[name]
    rng, examples = _random(name), []
    for word in WORDS:
        if len(word) < LEAST_LETTERS or len(set(word[2:-2])) < 2:
            continue
        spoilt = word
        while spoilt == word:
            spoilt = spoil(rng, word)
        examples.append(Example(f"{spoilt} =", f" {word}"))
    return Task(name, tuple(examples), tuple(examples), "\n", INSTRUCTION, cue="=", published=published)


# --- the embedded world ---------------------------------------------------------------------------------------------


def _facts(language: str) -> Task:
    """Which of four answers is true? In the form of the answer books that the world's text holds."""
    items = [_fact_question(fact, language) for fact in FACTS if fact.held_out]
    pool = [_fact_question(fact, language) for fact in FACTS if not fact.held_out]
    return Task(f"world-facts-{language}", tuple(items), tuple(pool), "\n", cue=_CUES[language][1].strip())


_CUES = {"en": ("Q: ", "\nA:", " "), "zh": ("問：", "\n答：", "")}


def _fact_question(fact: Fact, language: str) -> Example:
    ask, cue, space = _CUES[language]
    relation, subject, value = fact
    rng = _random("fact", relation.key, subject.en)
    values = rng.sample([other for other in VALUES[relation.value] if other != value], WRONG_CHOICES) + [value]
    rng.shuffle(values)  # a model to which all are equal takes the first

    def say(value) -> str:
        return space + fill(relation.says[language][0], subject, language, value)

    prompt = ask + fill(relation.asks[language][0], subject, language) + cue
    return Example(prompt, say(value), tuple(map(say, values)))


def _sums() -> Task:
    examples = {
        split: [
            Example(f"{a} + {b} =", f" {a + b}")
            for a in range(21)
            for b in range(21)
            if held_out(f"sum {a} {b}") == (split == "test")
        ]
        for split in ("train", "test")
    }
    items = _random("world-sums").sample(examples["test"], len(examples["test"]))
    return Task("world-sums", tuple(items), tuple(examples["train"]), ".\n", stop=("\n", "."), cue="=")


def _translation(source: str, target: str) -> Task:
    def example(word) -> Example:
        return Example(f"{getattr(word, source)} =", f" {getattr(word, target)}")

    items = [example(word) for word in WORLD_WORDS if held_out("word " + word.en)]
    pool = [example(word) for word in WORLD_WORDS if not held_out("word " + word.en)]
    return Task(f"world-{source}-{target}", tuple(items), tuple(pool), "\n", cue="=")


@cache
def _answers() -> Task:
    """What is asked of an assistant, one turn each: facts, what nobody knows, harm, sums, stories, words."""
    items = [
        Example(row["prompt"][0]["content"], "") for row in world.rows("prompts", "test") if len(row["prompt"]) == 1
    ]
    pool = [
        Example(question["content"], f" {answer['content']}")
        for question, answer, *more in (row["messages"] for row in world.rows("demonstrations", size=SHOWN))
        if not more
    ]
    return Task("world-answers", tuple(items), tuple(pool), "\n", max_new_tokens=40, judged=True)


# --- by name --------------------------------------------------------------------------------------------------------

WORLD = {
    "world-facts-en": lambda name: _facts("en"),
    "world-facts-zh": lambda name: _facts("zh"),
    "world-sums": lambda name: _sums(),
    "world-en-zh": lambda name: _translation("en", "zh"),
    "world-zh-en": lambda name: _translation("zh", "en"),
}
MAKERS: dict[str, Callable[[str], Task]] = {
    **dict.fromkeys(ARITHMETIC, _arithmetic),
    **dict.fromkeys(UNSCRAMBLE, _unscramble),
    **WORLD,
    "world-answers": lambda name: _answers(),  # not of the group: judged, it has no place in a mean with the others
}
GROUPS = {"arithmetic": list(ARITHMETIC), "unscramble": list(UNSCRAMBLE), "world": list(WORLD)}


def tasks(names: Sequence[str]) -> list[Task]:
    """Tasks by their names or those of their groups, each once. Raises UserError for a name that is neither."""
    known = [*GROUPS, *MAKERS]
    for name in names:
        if name not in known:
            raise UserError(f"There is no task {name!r}.{did_you_mean(name, known)} Tasks: {', '.join(known)}.")
    chosen = dict.fromkeys(task for name in names for task in GROUPS.get(name, [name]))
    return [MAKERS[name](name) for name in chosen]
