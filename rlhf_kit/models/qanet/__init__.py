"""QANet (Yu et al. 2018): extractive question answering without pre-training. Read `model.py` first.

Importing this package makes `AutoConfig` and `AutoModelForQuestionAnswering` know the type "qanet".
"""

from transformers import AutoConfig, AutoModelForQuestionAnswering

from rlhf_kit.models.qanet.config import QANetConfig
from rlhf_kit.models.qanet.model import QANetForQuestionAnswering
from rlhf_kit.models.qanet.tokenizer import train_word_tokenizer

AutoConfig.register(QANetConfig.model_type, QANetConfig)
AutoModelForQuestionAnswering.register(QANetConfig, QANetForQuestionAnswering)

__all__ = ["QANetConfig", "QANetForQuestionAnswering", "train_word_tokenizer"]
