"""Data that do not fit the memory: the same rows, made once, whole or not at all, none of them kept."""

STORE, ROWS = "rlhf_kit/data/store.py", "rlhf_kit/data/rows.py"
TEST = "tests/data/test_large_sources.py::"
WORKERS, WORK = "rlhf_kit/data/workers.py", "tests/data/test_workers.py::"
PACKING = "tests/stages/test_large_data.py::test_the_share_of_padding_in_packed_rows_is_said_and_kept"

MUTANTS = [
    (
        WORKERS,
        "            return error\n",
        "            raise\n",
        WORK + "test_a_users_mistake_is_told_in_its_own_words",
    ),
    (
        WORKERS,
        '        generator=imported("torch:Generator")(),',
        "        generator=None,",
        WORK + "test_nothing_is_drawn_from_the_process_that_trains",
    ),
    (
        WORKERS,
        'if "DataLoader worker" not in str(error)',
        "if True",
        WORK + "test_a_process_that_the_system_ends_is_told_and_nothing_waits",
    ),
    (WORKERS, "if is_large else 0)", ")", WORK + "test_how_many"),
    (
        "rlhf_kit/data/chat.py",
        "            if unread is not None:\n                unread.update(counts)\n",
        "",
        WORK + "test_demonstrations_have_the_same_tokens_counts_and_notices",
    ),
    (
        "rlhf_kit/sft.py",
        "workers_for(workers, is_large(dataset))",
        "workers_for(None, is_large(dataset))",
        WORK + "test_every_stage_that_tokenizes_hands_the_number_on",
    ),
    (
        STORE,
        "fcntl.flock(lock, fcntl.LOCK_EX)",
        "pass",
        TEST + "test_of_two_processes_one_makes_them_and_the_other_waits",
    ),
    (STORE, '["bytes"] == (home / ROWS)', '["bytes"] >= (home / ROWS)', TEST + "test_a_damaged_file_is_made_again"),
    (
        STORE,
        'unfinished = home.with_name(f".{home.name}.{os.getpid()}")',
        "unfinished = home",
        TEST + "test_a_kill_in_the_middle_leaves_nothing_that_is_read",
    ),
    (
        STORE,
        "    give_back()\n",
        "",
        "tests/stages/test_memory.py::test_in_the_first_thread_of_a_process[what_making_stored_rows_has_freed_goes]",
    ),
    (STORE, "[parts, _code(), ", "[parts, ", TEST + "test_the_name_of_what_is_stored_follows_from_the_code"),
    (
        STORE,
        "rows_hash(rows), tokenizer_hash(tokenizer), *more",
        "rows_hash(rows), *more",
        TEST + "test_tokens_are_those_in_memory_and_made_once",
    ),
    (
        "rlhf_kit/data/loading.py",
        "unread.content(), kinds, on_bad_row",
        "unread.name, kinds, on_bad_row",
        TEST + "test_what_is_stored_is_not_read_again_and_a_changed_file_is",
    ),
    (
        ROWS,
        "return Made(make, rows) if isinstance(rows, Filed) else [make(row) for row in rows]",
        "return [make(row) for row in rows]",
        TEST + "test_no_row_is_kept",
    ),
    (
        "rlhf_kit/training/order.py",
        "for part in order.split(AT_ONCE):",
        "for part in order.split(size):",
        TEST + "test_no_row_is_kept",
    ),
    (
        "rlhf_kit/inputs.py",
        "self.size + error.start - kept, line",
        "self.size + error.start, line",
        TEST + "test_its_faults_are_told_in_the_same_words_and_nothing_is_stored",
    ),
    (
        "rlhf_kit/stages/loading.py",
        "waste = 1 - tokens / (rows * length)",
        "waste = tokens / (rows * length)",
        PACKING,
    ),
]
