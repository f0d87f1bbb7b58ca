"""Rows divided among processes: what comes of them is what one process makes, in the same order."""

import os
import signal
import sys
from collections import Counter

import pytest
import torch

from rlhf_kit import cli
from rlhf_kit.data import chat, workers
from rlhf_kit.data.workers import in_order, workers_for
from rlhf_kit.errors import UserError
from rlhf_kit.models.checkpoints import load_tokenizer
from rlhf_kit.sft import encode_demonstrations
from rlhf_kit.world import BASE

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = load_tokenizer(BASE)
    chat.set_chat_template(tokenizer)
    return tokenizer


@linux
def test_the_order_is_that_of_one_process_and_each_part_is_made_by_another():
    made = list(in_order(lambda number: (number, os.getpid()), 20, 3))
    assert [number for number, _ in made] == [*range(20)]
    processes = {process for _, process in made}
    assert len(processes) == 3 and os.getpid() not in processes
    assert {process for _, process in in_order(lambda number: (number, os.getpid()), 3, 0)} == {os.getpid()}


@linux
def test_texts_have_the_same_tokens(tokenizer):
    texts = [f"{at} cats went to the market. " * (at % 5) for at in range(3500)]
    assert list(chat.encode_texts(tokenizer, texts, 2)) == list(chat.encode_texts(tokenizer, texts))


@linux
def test_demonstrations_have_the_same_tokens_counts_and_notices(tokenizer, caplog):
    rows = [
        {"messages": [
            {"role": "user", "content": f"What is {at}?", **({"name": "Ann"} if at % 7 == 0 else {})},
            {"role": "assistant", "content": "A number, and no more than that. " * (1 + at % 40)},
        ]}
        for at in range(2300)
    ]  # fmt: skip
    ends = []
    for count in (1, 3):
        caplog.clear()
        encoded, counts = encode_demonstrations(rows, tokenizer, 200, "train", count)
        ends.append((encoded[:], counts, caplog.messages))
    assert ends[0] == ends[1]
    assert ends[0][1]["dropped"] and any("name" in message for message in ends[0][2])


@linux
def test_refusals_of_all_processes_are_named_with_their_rows(tokenizer):
    roles = {1: "judge", 1500: "judge", 2400: "jury"}
    rows = [[{"role": roles.get(at, "user"), "content": "Hi"}] for at in range(2500)]

    def refused(count):
        with pytest.raises(UserError) as told:
            list(chat.encoding(rows, lambda row, _: chat.encode_prompt(tokenizer, row), "train", None, count))
        return str(told.value)

    assert refused(2) == refused(0)
    assert "row 2, 1501" in refused(2) and "row 2401" in refused(2)


@linux
def test_a_users_mistake_is_told_in_its_own_words():
    def fail(number):
        raise UserError(f"{number} is wrong")

    with pytest.raises(UserError, match="^0 is wrong$"):
        list(in_order(fail, 4, 2))


@linux
def test_a_process_that_the_system_ends_is_told_and_nothing_waits():
    def die(number):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(UserError, match="ended by the system.*dataset_num_proc 1"):
        list(in_order(die, 8, 2))


@linux
def test_nothing_is_drawn_from_the_process_that_trains():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(in_order(str, 4, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_how_many(monkeypatch, caplog):
    monkeypatch.setattr(workers.sys, "platform", "linux")
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    asked = {(None, False): 0, (None, True): 8, (1, True): 0, (3, False): 3, (12, True): 12}
    assert {given: workers_for(*given) for given in asked} == asked
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert workers_for(None, True) == 0
    monkeypatch.setattr(workers.sys, "platform", "darwin")
    assert workers_for(3, True) == 0 and "one process tokenizes" in caplog.text


def test_every_stage_that_tokenizes_hands_the_number_on(monkeypatch, tmp_path, tokenizer):
    seen = Counter()
    for module in ("rlhf_kit.sft", "rlhf_kit.reward.data", "rlhf_kit.ppo.prompts", "rlhf_kit.stages.pretrain"):
        monkeypatch.setattr(
            f"{module}.workers_for", lambda asked, _, module=module: seen.update([(module, asked)]) or 0
        )
    for stage in ("pretrain", "sft", "reward", "ppo"):
        more = ["--reward_funcs", "brief"] if stage == "ppo" else []
        argv = [stage, "--model_name_or_path", str(BASE), "--dataset_name", "world", "--max_train_samples", "8",
                "--output_dir", str(tmp_path / stage), "--dataset_num_proc", "3", "--dry_run", *more]  # fmt: skip
        assert cli.main(argv) == 0
    assert {asked for _, asked in seen} == {3} and len({module for module, _ in seen}) == 4
