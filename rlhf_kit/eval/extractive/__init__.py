"""Questions whose answer is a span of the passage: SQuAD, XQuAD, MLQA, DRCD, CMRC 2018. Fine-tune, predict, score."""
