"""Talking to models: what answers depend on, and the file that they are kept in."""

GENERATING, STORAGE, CHAT = "rlhf_kit/chat/generating.py", "rlhf_kit/storage.py", "rlhf_kit/data/chat.py"
TEST = "tests/chat/test_generating.py::"
GONE_ON = TEST + "test_after_ctrl_c_the_same_command_goes_on"
ONE_GO = TEST + "test_of_answers_made_in_one_go_all_are_kept_or_none"
OTHERS = TEST + "test_answers_of_other_settings_are_not_mixed"
ALONE = TEST + "test_an_answer_depends_on_its_row_and_number_alone"
CUT_OFF = "tests/stages/test_folders.py::test_a_line_that_was_cut_off_is_not_kept"
ENDED = TEST + "test_an_answer_that_ends_and_one_that_is_cut_off"

CONVERSATION, TERMINAL, SHOWING = (f"rlhf_kit/chat/{name}.py" for name in ("conversation", "terminal", "showing"))
TALK = "tests/chat/test_terminal.py::"
HOSTILE = TALK + "test_what_a_model_writes_is_no_escape_sequence[100-2]"

INTERRUPTS, STOPS = "rlhf_kit/terminal/interrupts.py", "tests/test_ctrl_c.py::test_"

MUTANTS = [
    (
        CONVERSATION,
        "        for name, says in going.items():\n            says.close()\n",
        "        for name in going:\n",
        TALK + "test_ctrl_c_stops_an_answer_and_leaves_no_work[2]",
    ),
    (
        INTERRUPTS,
        "        signal.setitimer(signal.ITIMER_REAL, 0)\n",
        "",
        STOPS + "the_clock_stops_with_the_wait",
    ),
    (
        INTERRUPTS,
        "    try:  # the clock is set in here: Ctrl-C may come as it returns\n"
        "        signal.setitimer(signal.ITIMER_REAL, WAKING, WAKING)\n",
        "    signal.setitimer(signal.ITIMER_REAL, WAKING, WAKING)\n    try:\n",
        STOPS + "a_ctrl_c_as_the_clock_starts_leaves_none_that_runs",
    ),
    (
        INTERRUPTS,
        "    signal.setitimer(signal.ITIMER_REAL, WAKING, WAKING)\n",
        "",
        STOPS + "ctrl_c_is_heard_where_readline_waits_without_a_key",
    ),
    (
        INTERRUPTS,
        "self._waits or self.is_asked, True",
        "self.is_asked, True",
        STOPS + "ctrl_c_ends_a_wait_for_the_next_step_at_once",
    ),
    (
        INTERRUPTS,
        "self._waits or self.is_asked, True",
        "self._waits, True",
        STOPS + "elsewhere_the_first_is_no_exception_and_the_second_is",
    ),
    (
        INTERRUPTS,
        "while not self.is_asked:",
        "while True:",
        STOPS + "one_that_a_finaliser_swallows_ends_the_steps_too",
    ),
    (TERMINAL, "    with heard():\n        return", "    if True:\n        return", TALK + "test_keys_are_heard"),
    (
        INTERRUPTS,
        "signal.signal(signal.SIGINT, stop._ask)",
        "signal.getsignal(signal.SIGINT)",
        TALK + "test_ctrl_c_as_an_answer_ends_does_not_end_the_session",
    ),
    (
        TERMINAL,
        "elif turn.answers or stop.is_asked:",
        "elif turn.answers:",
        TALK + "test_ctrl_c_before_the_first_token_takes_the_question_back",
    ),
    (
        SHOWING,
        'return self.console.render_str(self.texts.get(name, ""))',
        'return Text(self.texts.get(name, ""))',
        HOSTILE,
    ),
    (
        SHOWING,
        "widest - cell_len(label.plain)",
        "widest - len(label.plain)",
        TALK + "test_a_table_is_in_columns_whatever_width_its_letters_have",
    ),
    (
        CONVERSATION,
        '        if said.drawn.finish != "stop":\n',
        "        if said.finish is None:\n",
        TALK + "test_next_shows_what_may_come_behind_the_last_answer_and_sums_to_1",
    ),
    (
        CONVERSATION,
        '    check_file(path, "/save")\n    home_of(path).write(path.name, json_lines(rows))',
        "    path.write_text(json_lines(rows))",
        TALK + "test_a_saved_conversation_is_what_sft_reads",
    ),
    (TERMINAL, "(self.options.seed + 1) % SEEDS", "self.options.seed", TALK + "test_undo_retry_and_clear"),
    (
        TERMINAL,
        "                    if isinstance(interrupt, Terminated):\n                        raise\n",
        "                    assert interrupt is not None\n",
        TALK + "test_sigterm_ends_it_while_it_answers",
    ),
    (
        "rlhf_kit/models/revisions.py",
        "    refuse_twice(name for name, _ in named)\n",
        "",
        TALK + "test_what_is_wrong_is_one_message_before_a_weight_is_loaded",
    ),
    (
        GENERATING,
        'text_hash(f"{seed} {row} {answer}")',
        'text_hash(f"{seed} {answer}")',
        TEST + "test_a_prompt_that_comes_again_is_answered_anew",
    ),
    (GENERATING, 'text_hash(f"{seed} {row} {answer}")', 'text_hash(f"{seed} {row}")', ALONE),
    (GENERATING, "for number in range(first, min(first + size, total))]", "for number in range(size)]", ALONE),
    (GENERATING, "lines - lines % size", "lines", ONE_GO),
    (GENERATING, "            keep_lines(self.part, kept)\n", "", GONE_ON),
    (GENERATING, "            if not kept:\n", "            if kept:\n", OTHERS),
    (GENERATING, "            if other:\n", "            if False:\n", OTHERS),
    (GENERATING, "            self._hold(file)\n", "", TEST + "test_two_processes_do_not_write_one_file"),
    (
        GENERATING,
        "if self.path.exists() or whole_lines(self.part):",
        "if self.record.exists():",
        TEST + "test_settings_without_an_answer_bind_nobody",
    ),
    (
        GENERATING,
        "for name, value in row.items() if name not in hidden}",
        "for name, value in row.items() if name not in ANSWER}",
        TEST + "test_a_system_prompt_is_a_turn_before_each_prompt",
    ),
    (
        GENERATING,
        "    if opened:\n",
        "    if False:\n",
        TEST + "test_a_system_prompt_is_a_turn_before_each_prompt",
    ),
    (
        GENERATING,
        "    if replaced:\n",
        "    if False:\n",
        TEST + "test_every_row_is_handed_on_and_what_is_not_is_named",
    ),
    (GENERATING, '"stop" if ended else "length"', '"length"', ENDED),
    (GENERATING, "    if tokenizer.chat_template:\n", "    if True:\n", ENDED),
    (
        CHAT,
        "return whole.removeprefix(start) if whole.startswith(start) else tokenizer.decode(ids, **options)",
        "return tokenizer.decode(ids, **options)",
        "tests/data/test_chat.py::test_what_continues_a_text_is_decoded_letter_by_letter[always]",
    ),
    (STORAGE, '.split(b"\\n")[:-1][:count]', '.split(b"\\n")[:count]', CUT_OFF),
]
