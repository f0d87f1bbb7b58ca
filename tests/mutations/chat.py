"""Talking to models: what answers depend on, and the file that they are kept in."""

GENERATING, STORAGE, CHAT = "rlhf_kit/chat/generating.py", "rlhf_kit/storage.py", "rlhf_kit/data/chat.py"
TEST = "tests/chat/test_generating.py::"
GONE_ON = TEST + "test_after_ctrl_c_the_same_command_goes_on"
ONE_GO = TEST + "test_of_answers_made_in_one_go_all_are_kept_or_none"
OTHERS = TEST + "test_answers_of_other_settings_are_not_mixed"
ALONE = TEST + "test_an_answer_depends_on_its_row_and_number_alone"
CUT_OFF = "tests/stages/test_folders.py::test_a_line_that_was_cut_off_is_not_kept"
ENDED = TEST + "test_an_answer_that_ends_and_one_that_is_cut_off"

MUTANTS = [
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
