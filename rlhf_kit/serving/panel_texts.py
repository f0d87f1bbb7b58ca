"""What the panel "What PPO did" says, in English and 繁體中文; its script is given both."""

from __future__ import annotations

PANEL: dict[str, tuple[str, str]] = {
    "what ppo did": ("What PPO did", "PPO 改了什麼"),
    "reference": ("beside", "對照"),
    "measure": ("shown", "顯示"),
    "kl": ("Δ log-prob = KL", "Δ log-prob＝KL"),
    "kl less": ("less likely than beside", "比對照更不可能"),
    "kl more": ("likelier than beside", "比對照更可能"),
    "reward": ("reward", "獎勵"),
    "reward less": ("costs", "扣分"),
    "reward more": ("pays", "加分"),
    "value": ("value", "價值"),
    "value less": ("expects less than 0", "預期低於 0"),
    "value more": ("expects more than 0", "預期高於 0"),
    "legend": (
        "Colour, line and sign say the same: + blue on a solid line, − orange on a dashed one. Strongest at",
        "顏色、底線和正負號說的是同一件事：+ 藍色實線，− 橘色虛線。最深是",
    ),
    "nats": ("Log-probs in nats, at temperature", "log-prob 單位 nats，溫度"),
    "penalty": ("penalty", "懲罰"),
    "probability": ("probability of the answer", "整個回答的機率"),
    "is right": ("right", "對"),
    "is wrong": ("sure and wrong", "很確定卻錯"),
    "score": ("score", "分數"),
    "by": ("by", "評分的是"),
    "shaped": ("scaled and clipped", "縮放並截斷後"),
    "no end": ("no end", "沒有結尾"),
    "paid": (
        "The reward is what PPO computes before advantages are made of it and whitened: the penalty of each token, "
        "−KL times",
        "獎勵是 PPO 算優勢、白化之前的值：每個 token 的懲罰，−KL 乘上",
    ),
    "and score": ("; and the score, at the last token", "；最後一個 token 再加上分數"),
    "typed": ("Another answer, typed or pasted", "另一個回答：打字或貼上"),
    "show": ("Show it", "看這個回答"),
    "written": ("Back to the written one", "回到寫出來的"),
    "no answer": ("Write an answer above, or type one below.", "請在上面寫出回答，或在下面打一個。"),
    "stop": (". ", "。"),
    "away": ("The server does not answer.", "伺服器沒有回應。"),
}
