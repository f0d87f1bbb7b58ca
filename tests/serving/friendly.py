"""A store as a team would fill it, for the pictures in the documents: plain questions, two sources, two labelers."""

from __future__ import annotations

from rlhf_kit.data.labels.store import Answer, Event, Store
from rlhf_kit.feedback.assignment import Policy, next_assignment, policy_of, set_policy

SFT, PPO = "runs/my/sft", "runs/my/ppo"
LISTS = {  # a prompt: answers from the best to the worst
    "How do I boil an egg so that the yolk stays soft?": (
        "Put it into boiling water for six minutes, then into cold water so that it stops cooking.",
        "Boil it for about six minutes.",
        "Boil it until it is done. Eggs are boiled in water.",
        "Eggs come from hens.",
    ),
    "Write one sentence that thanks a neighbour for watering my plants.": (
        "Thank you so much for looking after my plants; they look greener than when I left!",
        "Thank you for watering the plants.",
        "Plants need water, and so I thank you for the water of the plants.",
        "Your plants are watered.",
    ),
    "Why is the sky blue?": (
        "Air scatters the blue part of sunlight more than the red, so blue reaches us from everywhere.",
        "Because air scatters blue light the most.",
        "Because light is blue up there.",
        "It reflects the sea.",
    ),
    "Give me a name for a cat that sleeps all day.": ("Pillow, or Duvet.", "Sleepy.", "Cat.", "Dogs sleep too."),
    "What should I pack for a day on the mountain?": (
        "Water, food, a rain jacket, a warm layer, a map, and a torch in case you are late.",
        "Water, something to eat and a jacket.",
        "A bag, with things in it.",
        "Mountains are high.",
    ),
    "Explain to a child what a shadow is.": (
        "When you stand in the way of the light, it cannot reach the ground behind you: that shape is your shadow.",
        "It is the dark place where light does not come.",
        "A shadow is an umbra or a penumbra of an occluding body.",
        "Shadows are scary.",
    ),
    "請用一句話提醒同學明天要帶水彩。": (
        "明天美術課要用水彩，記得帶喔！",
        "明天請帶水彩。",
        "水彩是一種顏料，請帶來。",
        "今天天氣很好。",
    ),
    "Which is heavier, a kilogram of iron or a kilogram of feathers?": (
        "Neither: both weigh one kilogram. The feathers only take more room.",
        "They weigh the same.",
        "Both are heavy, but iron is harder.",
        "The iron.",
    ),
}
ORDERS = ((0, 1, 2, 3), (1, 0, 2, 3), (1, 2, 0, 3), (0, 3, 1, 2))  # bob's; 0, 1, 2 and 2 of 6 pairs differ from amy's
ENGLISH = (
    "My soup is too salty. What can I do?",
    (
        "Add a little more water or unsalted broth, taste, and repeat. A boiled potato that you take out again helps "
        "less than people say.",
        "Add water until it tastes right.",
        "Salt is sodium chloride. It dissolves in soup.",
        "Add more salt, then taste it again.",
    ),
)
CHINESE = (
    "請幫我寫一封短信，向老師請一天病假。",
    (
        "老師您好：我今天發燒，想請一天病假，回去後會補上作業。謝謝老師！",
        "老師，我生病了，今天請假一天。",
        "請假需要填寫請假單。",
        "祝老師生日快樂！",
    ),
)


def ask(store: Store, prompt: str, texts: tuple[str, ...], turned: bool = False) -> None:
    """A list whose answers the two sources wrote in turn."""
    sources = (SFT, PPO) if turned else (PPO, SFT)
    store.add_task("ranking", prompt, [Answer(text, [{"model": sources[at % 2]}]) for at, text in enumerate(texts)])


def fill(store: Store) -> None:
    """Eight lists that amy ranked from best to worst, and bob by `ORDERS`."""
    set_policy(store, Policy(minimum=2, overlap=0, gold=0, repeats=0))
    for at, (prompt, texts) in enumerate(LISTS.items()):
        ask(store, prompt, texts, turned=at % 3 == 2)
    for name, orders in (("amy", ORDERS[:1]), ("bob", ORDERS)):
        number = store.add_labeler(name)
        for at in range(len(LISTS)):
            given = next_assignment(store, number, "ranking", policy_of(store))
            answers = store.task(given.task).answers
            ranks = {str(answers[k].id): rank for rank, k in enumerate(orders[at % len(orders)], start=1)}
            end = given.opened + 20 + 3 * at
            event = Event(f"{name}-{at}", "ranked", number, {"ranks": ranks}, given.id, None, given.opened, end)
            store.add_event(event)
