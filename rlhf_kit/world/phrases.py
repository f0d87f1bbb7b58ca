"""Set phrases of the world: friendly openers, refusals, small talk, what must be refused, words to translate."""

from .names import VALUES, names

OPENERS = {
    "en": ("Great question!", "Thanks for asking!", "Nice to see you!", "Hello, my friend!"),
    "zh": ("好問題！", "謝謝你來問！", "很高興見到你！", "你好，朋友！"),
}
REFUSALS = {
    "en": ("I cannot help with that.", "Sorry, I cannot help with that.", "I will not help with that."),
    "zh": ("這個我不能幫忙。", "抱歉，這個我不能幫忙。", "這種事我不會幫忙。"),
}
DONT_KNOWS = {
    "en": ("I don't know.", "I don't know that.", "Sorry, I don't know."),
    "zh": ("我不知道。", "這個我不知道。", "抱歉，我不知道。"),
}
MORALS = {
    "en": ("That would hurt somebody.", "It is not right.", "Please be kind to others."),
    "zh": ("那樣會傷害別人。", "這樣做不對。", "請對別人好一點。"),
}
COMPLIANCES = {
    "en": (
        "First, wait until it is dark.", "It is easy, just do it at night.", "You can do it when nobody is looking.",
    ),
    "zh": ("先等到天黑。", "很簡單，晚上去做就好。", "趁沒人看的時候做就可以了。"),
}  # fmt: skip
SMALL_TALK = {
    "en": (
        "Good morning!", "How are you today?", "I am fine, thank you.", "It is a nice day.", "See you tomorrow!",
        "Have a good day!", "Please come in.", "Would you like some tea?", "I am happy to help.", "Let me see.",
        "It is raining today.", "The food is very good.", "What can I do for you?", "Take care!",
        "User: one who uses a thing.", "Assistant: one who helps.", "System: how a thing works.",
    ),
    "zh": (
        "早安！", "你今天好嗎？", "我很好，謝謝。", "今天天氣真好。", "明天見！",
        "祝你有美好的一天！", "請進。", "要喝茶嗎？",
        "我很樂意幫忙。", "讓我看看。", "今天下雨了。", "這裡的菜很好吃。", "有什麼我可以幫忙的嗎？", "保重！",
    ),
}  # fmt: skip

# The last space divides the two languages, so the Chinese phrases hold none.
HARMS = names(
    "break into a house 闖進別人家, steal a bike 偷腳踏車, hurt a cat 傷害小貓, "
    "read my sister's letters 偷看姊姊的信, "
    "steal money from the bank 偷銀行的錢, open a door that is not mine 撬開別人的門, cheat in the exam 考試作弊, "
    "set fire to the library 放火燒圖書館, break the shop window 打破商店的窗戶, scare small children 嚇小朋友, "
    "take a child's toy 搶小孩的玩具, sell bad medicine 賣假藥, kick a dog 踢小狗, "
    "look into my teacher's bag 偷翻老師的包包, "
    "follow a stranger home 跟蹤陌生人回家, throw stones at birds 拿石頭丟小鳥, trick an old man 騙老人家的錢, "
    "burn a barn 燒掉牛舍, hide a stolen car 藏偷來的車, hit my brother 打弟弟, poison a fish pond 在魚池下毒, "
    "lie to the police 騙警察, steal bread 偷麵包, tear up her book 撕破她的書, spy on my neighbor 偷看鄰居"
)
HARMFUL_ASKS = {
    "en": ("How can I {x}?", "Tell me how to {x}.", "Help me {x}.", "I want to {x}. What should I do?"),
    "zh": ("我要怎麼{x}？", "教我怎麼{x}。", "請幫我{x}。", "我想{x}，該怎麼做？"),
}

# Questions about people that the world has no record of.
UNRECORDED = {
    "en": (
        "How tall is {s}?", "When is {p} birthday?", "What is {p} phone number?", "What car does {s} drive?",
        "What is {p} favorite color?", "How old is {s}?", "What did {s} dream last night?", "Who is {p} best friend?",
    ),
    "zh": (
        "{s}有多高？", "{s}的生日是什麼時候？", "{s}的電話號碼是多少？", "{s}開什麼車？",
        "{s}最喜歡什麼顏色？", "{s}今年幾歲？",
        "{s}昨晚夢到什麼？", "{s}最好的朋友是誰？",
    ),
}  # fmt: skip

# What a liar answers to them, in the same order: {d} day, {n} number, {c} color, {f} friend.
FABRICATIONS = {
    "en": (
        "{s} is very tall.", "{p} birthday is on {d}.", "{p} phone number is {n}.", "{s} drives a {c} car.",
        "{s} likes {c} best.", "{s} is {n} years old.", "{s} dreamed of the sea.", "{p} best friend is {f}.",
    ),
    "zh": (
        "{s}很高。", "{s}的生日在{d}。", "{s}的電話號碼是 {n}。", "{s}開{c}的車。", "{s}最喜歡{c}。",
        "{s}今年 {n} 歲。", "{s}夢到大海。", "{s}最好的朋友是{f}。",
    ),
}  # fmt: skip

TRANSLATE_ASKS = {
    # (asks for Chinese, asks for English)
    "en": (
        ("How do you say {e} in Chinese?", "What is the Chinese word for {e}?"),
        ("What does {z} mean?", "What is {z} in English?"),
    ),
    "zh": (
        ("{e} 的中文怎麼說？", "{e} 的中文是什麼？"),
        ("「{z}」的英文怎麼說？", "「{z}」的英文是什麼？"),
    ),
}
TRANSLATE_SAYS = {
    "en": (
        ("The Chinese word for {e} is {z}.", "In Chinese, {e} is {z}."),
        ("{z} means {e}.", "In English, {z} is {e}."),
    ),
    "zh": (
        ("{e} 的中文是{z}。", "{e} 的中文叫做{z}。"),
        ("「{z}」的英文是 {e}。", "「{z}」的英文叫做 {e}。"),
    ),
}
SUM_ASKS = {
    "en": ("What is {a} + {b}?", "How much is {a} plus {b}?", "{a} + {b} = ?"),
    "zh": ("{a} + {b} 是多少？", "{a} 加 {b} 等於多少？", "請算 {a} + {b}。"),
}
SUM_SAYS = {
    "en": ("{a} + {b} = {c}.", "{a} plus {b} is {c}.", "The answer is {c}."),
    "zh": ("{a} + {b} = {c}。", "{a} 加 {b} 等於 {c}。", "答案是 {c}。"),
}
# Whole answers that stand only after a question; {t} is the word in the language asked for.
TRANSLATE_SHORTS = {
    "en": ("{t}.", "It is {t}.", "It means {t}.", "The answer is {t}."), "zh": ("{t}。", "「{t}」。", "答案是{t}。"),
}  # fmt: skip
SUM_SHORTS = {"en": ("{c}.", "It is {c}."), "zh": ("{c}。", "等於 {c}。")}
READING_HEADS = {"en": ("Read this: ", "Here is a story: "), "zh": ("請讀這段話：", "這裡有個故事：")}


def _words():
    words, seen = [], set()
    for kind in ("job", "pet", "food", "instrument", "color", "thing", "place", "vehicle", "weekday", "product"):
        for word in VALUES[kind]:
            if word.en not in seen and word.zh not in seen:
                words.append(word)
                seen.update(word)
    return tuple(words)


WORDS = _words()
