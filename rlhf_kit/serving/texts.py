"""What the pages say, in English and 繁體中文."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_kit.serving.next_words import WORDS

LANGUAGES = {"en": "English", "zh-Hant": "繁體中文"}

TEXTS: dict[str, tuple[str, str]] = {
    "title": ("Label answers", "標註回答"),
    "runs": ("Runs", "訓練"),
    "to label": ("Sign in", "登入"),
    "chat": ("Chat", "對話"),
    "run": ("Run", "訓練"),
    "state": ("State", "狀態"),
    "is running": ("running", "進行中"),
    "is ended": ("ended", "已結束"),
    "is stopped": ("stopped", "已中斷"),
    "stage": ("Stage", "階段"),
    "step": ("Step", "步數"),
    "time": ("Time", "時間"),
    "last figures": ("Last figures", "最新數字"),
    "no runs": ("No run has begun here yet.", "這裡還沒有訓練。"),
    "run away": ("The server or the run is away; this may be old.", "伺服器或這次訓練不在了，畫面可能是舊的。"),
    "reading": ("Reading the logs …", "正在讀紀錄……"),
    "findings": ("What the doctor sees", "醫生的檢查"),
    "serious": ("serious", "嚴重"),
    "warning": ("warning", "注意"),
    "was seen": ("Seen", "看到"),
    "why": ("Why it matters", "為什麼要緊"),
    "to change": ("What to change", "該改什麼"),
    "no findings": ("Nothing is wrong that can be seen.", "沒有看到問題。"),
    "too few logs": ("Too few logs to see whether something is wrong.", "紀錄還太少，看不出有沒有問題。"),
    "logs": ("Logs looked at", "看過的紀錄"),
    "rank": ("Rank", "排序"),
    "thumbs": ("Thumbs", "讚／噓"),
    "progress": ("Progress", "進度"),
    "guidelines": ("Guidelines", "標註準則"),
    "sign out": ("Sign out", "登出"),
    "language": ("Language", "語言"),
    "theme": ("Light or dark", "亮或暗"),
    "your name": ("Your name", "你的名字"),
    "sign in": ("Begin", "開始"),
    "sign in why": (
        "Your rankings are kept under this name. Use the same name to go on another time.",
        "你的排序會記在這個名字底下；下次請用同一個名字。",
    ),
    "by link": (
        "Open the link that you were given. It works once.",
        "請打開給你的連結；每個連結只能用一次。",
    ),
    "link is used": (
        "This link was used before, or has expired. Ask for a new one.",
        "這個連結已用過或過期，請索取新的。",
    ),
    "read first": ("Please read the guidelines before you begin.", "開始之前，請先閱讀標註準則。"),
    "i have read": ("I have read them", "我讀完了"),
    "version": ("version", "版本"),
    "no guidelines": ("There are no guidelines yet.", "還沒有標註準則。"),
    "prompt": ("Prompt", "提示"),
    "answer": ("Answer", "回答"),
    "how to rank": (
        "Rate each answer, then put them in order: the best one first. Ties are welcome.",
        "先替每個回答打分數，再排出順序，最好的放最前面；差不多就並列。",
    ),
    "rating": ("Overall quality", "整體品質"),
    "worst": ("worst", "最差"),
    "best": ("best", "最好"),
    "flags": ("Remarks", "註記"),
    "up": ("Move up", "上移"),
    "down": ("Move down", "下移"),
    "tie": ("Ties with the one above", "與上一個並列"),
    "by rating": ("Order by my ratings", "依分數排列"),
    "comment": ("Comment (not required)", "意見（可不填）"),
    "not rankable": ("Not rankable", "無法排序"),
    "skip": ("Skip", "跳過"),
    "undo": ("Undo", "復原"),
    "review": ("Review", "檢查"),
    "submit": ("Submit", "送出"),
    "back": ("Back", "返回"),
    "help": ("Keys", "快速鍵"),
    "close": ("Close", "關閉"),
    "why skip": ("Why? (not required)", "為什麼？（可不填）"),
    "untouched": (
        "You did not change the order in which the answers were shown. Is it your ranking?",
        "你沒有動過順序，這真的是你的排序嗎？",
    ),
    "contradiction": (
        "A higher rated answer stands below a lower rated one:",
        "分數較高的回答排在分數較低的後面：",
    ),
    "your ranking": ("Your ranking", "你的排序"),
    "saved": ("Saved.", "已儲存。"),
    "not saved": (
        "Not saved. Your work is still on this page; try again.",
        "還沒有儲存。你的標註還在這一頁，請再試一次。",
    ),
    "next": ("Next", "下一題"),
    "done": ("Nothing is left for you to do. Thank you!", "你的部分都完成了，謝謝！"),
    "done of": ("done", "已完成"),
    "left": ("left", "剩下"),
    "thumb up": ("Good", "讚"),
    "thumb down": ("Bad", "噓"),
    "thumb question": ("Is this a good answer?", "這是個好回答嗎？"),
    "whole answer": ("The whole answer", "完整回答"),
    "example": ("Practice", "練習"),
    "example is": ("The order of the guidelines, and why:", "準則的順序與理由："),
    "revise": ("Revise", "修改"),
    "your last": ("Your last decisions", "你最近的標註"),
    "own agreement": ("Your agreement with others", "你與其他人的一致率"),
    "labelers": ("Labelers", "標註者"),
    "decisions": ("Decisions", "筆數"),
    "seconds": ("Seconds each", "每筆秒數"),
    "gold": ("Known answers", "已知答案"),
    "repeats": ("With oneself", "前後一致"),
    "others": ("With others", "與他人一致"),
    "agreement": ("Pairs that two labelers order alike", "兩人排序相同的比例"),
    "same thumbs": ("Answers to which two labelers give the same thumb", "兩人給相同讚噓的比例"),
    "tau": ("Kendall's tau-b of two labelers", "兩人的 Kendall tau-b"),
    "alpha": ("Krippendorff's alpha (ordinal)", "Krippendorff's alpha（順序尺度）"),
    "ceiling": ("A reward model can reach at most", "獎勵模型的準確率上限"),
    "position": ("Rank follows the place shown", "排名與顯示位置的相關"),
    "length": ("Rank follows the length", "排名與長度的相關"),
    "biased": ("there is a bias", "有偏誤"),
    "sources": ("Sources by strength", "各來源的強弱"),
    "source": ("Source", "來源"),
    "strength": ("Strength (Bradley-Terry, logits)", "強度（Bradley-Terry，logit）"),
    "comparisons": ("n", "n"),
    "merged": ("All rankings together", "合併的排序"),
    "exports": ("Export", "匯出"),
    "nothing yet": ("Nothing to show yet.", "還沒有資料。"),
    "needs script": ("This page needs JavaScript.", "這一頁需要 JavaScript。"),
    "refused": ("Refused", "已拒絕"),
} | WORDS
KEYS: Sequence[tuple[str, str, str]] = (
    ("1 … 7", "Rate the answer in focus", "替選取的回答打分數"),
    ("Tab, j, k", "Next answer, or the one before", "下一個、上一個回答"),
    ("Alt + ↑ ↓", "Move the answer", "移動回答"),
    ("=", "Tie with the one above", "與上一個並列"),
    ("o", "Order by ratings", "依分數排列"),
    ("n", "Not rankable", "無法排序"),
    ("s", "Skip", "跳過"),
    ("u", "Undo; at the beginning, your last ranking", "復原；沒得復原時回到上一筆"),
    ("Enter", "Review, then submit", "檢查，再送出"),
    ("?", "These keys", "顯示快速鍵"),
)
THUMB_KEYS: Sequence[tuple[str, str, str]] = (
    ("y, ↑", "Good 讚", "讚"),
    ("n, ↓", "Bad 噓", "噓"),
    ("s", "Skip", "跳過"),
    ("u", "Your last thumb", "回到上一筆"),
    ("?", "These keys", "顯示快速鍵"),
)


def say_in(language: str):
    """The function that gives a text of TEXTS in a language."""
    at = 1 if language == "zh-Hant" else 0
    return lambda name: TEXTS[name][at]


def language_of(accepted: str) -> str:
    """The first of LANGUAGES in an Accept-Language header: Chinese of any kind, or English.

    >>> language_of("zh-TW,zh;q=0.9,en;q=0.8"), language_of("de"), language_of("en-GB, zh;q=0.5")
    ('zh-Hant', 'en', 'en')
    """
    for part in accepted.split(","):
        name = part.partition(";")[0].strip().lower()
        if name.startswith(("zh", "en")):
            return "zh-Hant" if name.startswith("zh") else "en"
    return "en"
