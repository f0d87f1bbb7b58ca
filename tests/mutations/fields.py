"""What turns hold beside role and content, and the columns that stand before a dialogue."""

FIELDS = "tests/data/test_fields.py::"
MUTANTS = [
    (
        "rlhf_kit/data/messages.py",
        "all(message.get(key) in (None, 1) for key in LEARNT)",
        "all(message.get(key) in (None, 0, 1) for key in LEARNT)",
        FIELDS + "test_a_turn_of_weight_0_is_not_learnt",
    ),
    (
        "rlhf_kit/data/chat.py",
        "(run if not run[0] or next(of_answers) else [0] * len(run))",
        "run",
        FIELDS + "test_a_turn_of_weight_0_is_not_learnt",
    ),
    (
        "rlhf_kit/data/messages.py",
        'prompt = [{"weight": 0} | turn if turn["role"] == "assistant" else turn for turn in turns]',
        "prompt = turns",
        FIELDS + "test_answers_inside_a_prompt_are_not_learnt_those_of_a_history_are",
    ),
    (
        "rlhf_kit/data/messages.py",
        'opening = [{"role": "system", "content": system}]',
        "opening = []",
        FIELDS + "test_a_system_column_is_the_first_turn",
    ),
    (
        "rlhf_kit/data/messages.py",
        "            turns = before + turns\n",
        "            pass\n",
        FIELDS + "test_system_and_history_stand_before_every_prompt",
    ),
    (
        "rlhf_kit/data/messages.py",
        'if any(turn.get("content") is not None and _other_text(turn["content"], system) for turn in own):',
        "if False:",
        FIELDS + "test_a_system_text_that_stands_there_already_is_not_doubled",
    ),
    (
        "rlhf_kit/data/templates.py",
        "        if not any(_garbled(value) in text for message in formed for value in _arguments(message)):\n",
        "        if text:\n",
        FIELDS + "test_tools_calls_and_results_reach_the_template",
    ),
    (
        "rlhf_kit/data/templates.py",
        "    if lost:\n",
        "    if False:\n",
        FIELDS + "test_a_template_that_does_not_write_calls_or_tools_refuses_them",
    ),
    (
        "rlhf_kit/data/templates.py",
        "if _PROBE not in render(tokenizer, probed, tools=tools):",
        "if False:",
        FIELDS + "test_a_template_that_leaves_out_a_turn_refuses_it",
    ),
    (
        "rlhf_kit/data/templates.py",
        "names += [field] * (render(tokenizer, without, tools=tools) == whole)",
        "pass",
        FIELDS + "test_a_field_that_the_template_does_not_write_is_named",
    ),
    (
        "rlhf_kit/sft.py",
        "encode_dialogue(tokenizer, learning_last(messages[: at + 1]), tools) for at in answers",
        "encode_dialogue(tokenizer, learning_last(messages[: at + 1]), tools) for at in answers[-1:]",
        FIELDS + "test_a_dialogue_under_a_thought_template_is_one_row_an_answer",
    ),
    (
        "rlhf_kit/data/checks.py",
        "elif not whole and not is_learnt(value[-1]):",
        "elif False:",
        FIELDS + "test_answers_of_comparisons_are_text",
    ),
]
