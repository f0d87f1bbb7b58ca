"""Labels by people: what a store keeps and refuses, who is given what, what a terminal takes."""

SCHEMA, STORE, CONTENT = (f"rlhf_kit/data/labels/{name}.py" for name in ("schema", "store", "content"))
READER, EXPORT, IMPORTING = (f"rlhf_kit/data/labels/{name}.py" for name in ("reader", "export", "importing"))
ASSIGNMENT, ASKING, LABELLING = (f"rlhf_kit/feedback/{name}.py" for name in ("assignment", "asking", "labelling"))
COLLECTING = "rlhf_kit/feedback/collecting.py"
IN_STORE, IN_READER = "tests/data/labels/test_store.py::", "tests/data/labels/test_reader.py::"
GIVEN, ASKED = "tests/feedback/test_assignment.py::", "tests/feedback/test_asking.py::"
TRUTH, TEACHING = "rlhf_kit/feedback/truth.py", "rlhf_kit/feedback/teaching.py"
TRUE, TAUGHT = "tests/feedback/test_told_truth.py::", "tests/feedback/test_teaching.py::"
STARTED = "tests/serving/test_ui.py::"
AGREEMENT, AGREED = "rlhf_kit/data/labels/agreement.py", "tests/data/labels/test_agreement.py::"
GUARDED, PAGED = "tests/serving/test_access.py::", "tests/serving/test_pages.py::"
UNFIT = IN_STORE + "test_a_decision_that_does_not_fit_is_refused"
EXAMPLES = GIVEN + "test_examples_come_first_and_gold_in_its_share"

MUTANTS = [
    # the store
    (
        SCHEMA,
        'for action in ("UPDATE", "DELETE"):',
        'for action in ("UPDATE",):',
        IN_STORE + "test_the_database_refuses_to_change_an_event[DELETE FROM events]",
    ),
    (STORE, "if kept is not None:", "if False:", IN_STORE + "test_the_same_event_is_kept_once"),
    (
        STORE,
        "if kept != event.labeler:",
        "if False:",
        IN_STORE + "test_an_event_of_another_labelers_assignment_is_refused",
    ),
    (
        STORE,
        "if row is None or row.labeler != event.labeler:",
        "if row is None:",
        IN_STORE + "test_an_event_of_another_labelers_assignment_is_refused",
    ),
    (
        STORE,
        'select(func.max(schema.events.c.id).label("id"))',
        'select(func.min(schema.events.c.id).label("id"))',
        IN_STORE + "test_a_revision_is_added_and_counts",
    ),
    (
        STORE,
        "if not names and create:",
        "if create:",
        IN_STORE + "test_a_file_of_something_else_is_refused_and_stays[True]",
    ),
    (
        STORE,
        'or _beginning(path) not in (SQLITE_HEADER, b""):',
        ":",
        IN_STORE + "test_a_file_of_something_else_is_refused_and_stays[False]",
    ),
    (STORE, "if url.password is not None:", "if False:", IN_STORE + "test_a_password_is_not_taken_in_a_url"),
    (
        STORE,
        "if version != str(schema.VERSION):",
        "if version is None:",
        IN_STORE + "test_a_store_of_another_version_is_refused_by_its_number",
    ),
    (
        STORE,
        "sources.setdefault(answer.text, []).extend(answer.sources)",
        "sources[answer.text] = list(answer.sources)",
        IN_STORE + "test_equal_answers_are_one_with_the_sources_of_all",
    ),
    (
        STORE,
        "sorted(texts)",
        "texts",
        IN_STORE + "test_the_same_list_is_one_task_whatever_its_order",
    ),
    (
        STORE,
        "if (gold is None) != (mode == schema.NORMAL) or ",
        "if ",
        IN_STORE + "test_gold_is_for_each_answer_of_a_gold_task",
    ),
    (STORE, "if row.role != role:", "if False:", IN_STORE + "test_a_labeler_does_not_become_an_admin"),
    (
        STORE,
        "schema.answers.c.id == number, schema.assignments.c.labeler == labeler",
        "schema.answers.c.id == number",
        GUARDED + "test_a_labeler_reaches_their_own_work_alone",
    ),
    (
        STORE,
        '"BEGIN IMMEDIATE" if writes else "BEGIN"',
        '"BEGIN"',
        IN_STORE + "test_two_who_make_a_store_at_once_make_one",
    ),
    # what a decision may hold
    (CONTENT, "dense(values) != values", "False", UNFIT + "[content3-without a gap]"),
    (CONTENT, "type(rank) is int for rank", "isinstance(rank, int) for rank", UNFIT + "[content5-whole numbers]"),
    (
        CONTENT,
        "for name in content if name not in _FIELDS[kind]]",
        "for name in ()]",
        UNFIT + "[content6-`label` is not part]",
    ),
    (CONTENT, "value in LIKERT", "value > 0", UNFIT + "[content7-`ratings` of answer 1 must be 1 to 7]"),
    (CONTENT, "value.count(name) == 1", "True", UNFIT + "[content10-`flags` of answer 1]"),
    (CONTENT, 'or len(content.get(name, "")) > COMMENT', "", UNFIT + "[content12-at most 10,000]"),
    (CONTENT, "(kind == THUMB) != (task == THUMBS)", "False", IN_STORE + "test_a_thumb_is_for_a_task_of_thumbs"),
    # a store as data
    (READER, "decision.turn == 0 and ", "", IN_READER + "test_rankings_that_count_are_read"),
    (
        READER,
        " and tasks[decision.task].mode == schema.NORMAL",
        "",
        IN_READER + "test_rankings_that_count_are_read",
    ),
    (
        READER,
        "max(first, key=lambda text: mean(ratings[key, text] or [0]))",
        "first[-1]",
        IN_READER + "test_the_best_answer_is_that_of_all_rankings_together",
    ),
    (EXPORT, '(f"labeler-{at}", role)', "(_, role)", IN_READER + "test_without_names_nobody_is_named"),
    (
        IMPORTING,
        'f"import-{uid}"',
        'f"import-{time.time_ns()}"',
        IN_READER + "test_rankings_made_elsewhere_are_put_in_once",
    ),
    # how far labelers agree
    (
        "rlhf_kit/data/labelers.py",
        "signs.count(1) + signs.count(-1)",
        "len(signs)",
        AGREED + "test_pairs_that_are_ordered_alike[one3-other3-expected3]",
    ),
    (
        AGREEMENT,
        "np.asarray(weights, float)",
        "np.ones(len(weights))",
        AGREED + "test_shares_weigh_by_pairs_and_means_by_rankings",
    ),
    (
        AGREEMENT,
        "(1 / len(games), *game)",
        "(1.0, *game)",
        AGREED + "test_strengths_are_those_of_a_plain_implementation",
    ),
    (
        "rlhf_kit/data/labelers.py",
        "(1 + math.sqrt(2 * rate - 1)) / 2 if",
        "rate if",
        AGREED + "test_a_report_of_two_labelers_by_hand",
    ),
    (
        AGREEMENT,
        "[each for each in decisions if each.turn == 0]",
        "decisions",
        IN_READER + "test_gold_tasks_and_hidden_repeats_are_measured_by_labeler",
    ),
    (
        AGREEMENT,
        "if (task := tasks[each.task]).mode == schema.GOLD:",
        "if (task := tasks[each.task]).gold:",
        IN_READER + "test_gold_tasks_and_hidden_repeats_are_measured_by_labeler",
    ),
    (
        AGREEMENT,
        "if each.turn == 1 and was is not None:",
        "if was is not None:",
        IN_READER + "test_gold_tasks_and_hidden_repeats_are_measured_by_labeler",
    ),
    # known answers and demonstrations put into a store
    (
        STORE,
        "if (found.mode, known) != (mode, gold):",
        "if found.mode != mode:",
        IN_READER + "test_a_list_that_is_there_otherwise_is_refused_and_nothing_added"
        "[gold-gold-as a task of the mode gold with other values]",
    ),
    (
        IMPORTING,
        "there = [store.check_task(*task) for task, _ in tasks]",
        "there = [False for task, _ in tasks]",
        IN_READER
        + "test_a_list_that_is_there_otherwise_is_refused_and_nothing_added[example-gold-as a task of the mode"
        " example;]",
    ),
    (
        "rlhf_kit/data/convert.py",
        "end = max(at for",
        "end = min(at for",
        IN_READER + "test_demonstrations_are_thumbs_up",
    ),
    (
        AGREEMENT,
        "THUMB_RANKS = {True: (1, 2), False: (2, 1)}",
        "THUMB_RANKS = {True: (1, 2), False: (1, 1)}",
        IN_READER + "test_thumbs_are_measured_as_rankings_are",
    ),
    # who is given what
    (
        ASSIGNMENT,
        "return done, new + (_open(connection, labeler, kind) is not None)",
        "return done, new",
        GIVEN + "test_standing_counts_what_is_done_and_left",
    ),
    (
        ASSIGNMENT,
        "tasks.c.draw < policy.overlap,",
        "tasks.c.draw < 0,",
        GIVEN + "test_each_task_is_given_to_as_many_as_it_needs_and_nobody_twice",
    ),
    (
        ASSIGNMENT,
        "tasks.c.mode == schema.NORMAL, tasks.c.id.not_in(seen))",
        "tasks.c.mode == schema.NORMAL)",
        GIVEN + "test_each_task_is_given_to_as_many_as_it_needs_and_nobody_twice",
    ),
    (
        ASSIGNMENT,
        "last.is_(None) & (given.c.expires > now)",
        "last.is_(None)",
        GIVEN + "test_a_lock_keeps_a_task_for_its_labeler_until_it_expires",
    ),
    (
        ASSIGNMENT,
        "or_(stands, held)",
        "stands",
        GIVEN + "test_a_lock_keeps_a_task_for_its_labeler_until_it_expires",
    ),
    (
        ASSIGNMENT,
        ".values(expires=now + policy.lock)",
        ".values(turn=opened.turn)",
        GIVEN + "test_looking_at_it_again_renews_the_lock",
    ),
    (
        ASSIGNMENT,
        "(schema.RANKED, schema.THUMB, schema.UNRANKABLE)",
        "schema.DECISIONS",
        GIVEN + "test_a_skipped_task_goes_to_somebody_else",
    ),
    (
        ASSIGNMENT,
        "if opened is not None:",
        "if False:",
        GIVEN + "test_what_is_open_is_given_again_with_the_same_order",
    ),
    (
        ASSIGNMENT,
        "for row in seen[:-APART]",
        "for row in seen",
        GIVEN + "test_a_hidden_repeat_comes_after_others",
    ),
    (ASSIGNMENT, "if draw < policy.gold and", "if", EXAMPLES),
    (ASSIGNMENT, "if draw < policy.gold and", "if False and", EXAMPLES),
    (ASSIGNMENT, "tasks.c.id.in_(old), tasks.c.mode == schema.NORMAL,", "tasks.c.id.in_(old),", EXAMPLES),
    (
        ASSIGNMENT,
        "random.SystemRandom().shuffle(presented)",
        "pass",
        GIVEN + "test_the_order_shown_is_drawn_and_kept",
    ),
    (
        ASSIGNMENT,
        "given.c.id == number, given.c.labeler == labeler",
        "given.c.id == number",
        GIVEN + "test_an_assignment_is_its_labelers_alone",
    ),
    (
        COLLECTING,
        "if prompt_key(prompt) not in done]",
        "]",
        "tests/feedback/test_collecting.py::test_the_same_command_asks_nothing_again_and_others_add",
    ),
    (
        COLLECTING,
        "if len({answer.text for answer in answers}) < 2:",
        "if False:",
        "tests/feedback/test_collecting.py::test_a_list_of_equal_answers_is_left_out",
    ),
    # asked in the terminal
    (
        ASKING,
        "draft = undone.pop()",
        "undone.pop()",
        ASKED + "test_undo_takes_back_a_step_and_then_leads_to_the_last_task",
    ),
    (
        ASKING,
        "if letter not in list(letters)]",
        "if letter is None]",
        ASKED + "test_what_is_no_order_is_told[a b c d-no answer 'd']",
    ),
    (ASKING, "named.count(letter) > 1", "False", ASKED + "test_what_is_no_order_is_told[a a b c-a appears twice]"),
    (
        ASKING,
        "and rank[one] > rank[other]",
        "and False",
        ASKED + "test_a_contradiction_is_told_and_can_be_gone_back_on",
    ),
    (
        ASKING,
        "if not draft.touched:",
        "if False:",
        ASKED + "test_enter_twice_submits_and_an_untouched_order_is_warned_of",
    ),
    (
        ASKING,
        '"Enter: submit 送出; b: back 返回 ") == ""',
        '"Enter: submit 送出; b: back 返回 ") is not None',
        ASKED + "test_a_contradiction_is_told_and_can_be_gone_back_on",
    ),
    (
        LABELLING,
        "if not store.acknowledged(labeler, version):",
        "if True:",
        "tests/feedback/test_labelling.py::test_guidelines_are_read_once",
    ),
    # beside the truth, and ranked in the demo
    (
        TRUTH,
        "-round(value, 6)",
        "-value",
        TRUE + "test_a_difference_of_rounding_is_none",
    ),
    (
        "rlhf_kit/data/labelers.py",
        "signs.count(1), signs.count(1) + signs.count(-1)",
        "signs.count(1), len(signs)",
        TRUE + "test_pairs_by_hand[ranks2-expected2]",
    ),
    (
        LABELLING,
        "if reveal_truth and (compared",
        "if (compared",
        TRUE + "test_the_terminal_tells_the_truth_after_a_ranking_was_kept[False]",
    ),
    (
        TEACHING,
        "draw.sample(texts, len(texts))",
        'sorted(texts, key=lambda text: row["ranks"][row["completions"].index(text)])',
        TAUGHT + "test_the_order_of_the_answers_tells_nothing",
    ),
    (
        TEACHING,
        "del ranked[-1:]",
        "pass",
        TAUGHT + "test_undo_at_the_beginning_of_a_list_asks_the_one_before_again",
    ),
    (
        TEACHING,
        "row is not None and len(",
        "len(",
        TAUGHT + "test_what_is_skipped_or_not_rankable_is_left_out",
    ),
    (
        TEACHING,
        "order([-value for value in own])",
        "order(own)",
        TAUGHT + "test_what_moved_by_hand",
    ),
    (
        STORE,
        "hide_parameters=True,  # no label",
        "hide_parameters=False,  # no label",
        STARTED + "test_no_secret_and_no_label_reaches_a_log",
    ),
    (
        "rlhf_kit/serving/overview.py",
        '{"html": False}',
        '{"html": True}',
        PAGED + "test_guidelines_are_markdown_without_tags_or_scripts",
    ),
    (
        "rlhf_kit/serving/overview.py",
        "from rlhf_kit.data.labels.reader import merged",
        "import rlhf_kit.data.labels.agreement\nfrom rlhf_kit.data.labels.reader import merged",
        STARTED + "test_lists_are_ranked_without_a_model_in_memory",
    ),
    (
        "rlhf_kit/data/sources.py",
        '"rlhf_kit.data.labels.reader:read_labels", "feedback")',
        '"rlhf_kit.data.labels.reader:read_labels")',
        STARTED + "test_a_command_whose_extra_is_missing_says_how_to_install_it",
    ),
    (
        "rlhf_kit/cli/commands.py",
        'extra="ui",\n        examples=("ui ',
        'examples=("ui ',
        STARTED + "test_a_command_whose_extra_is_missing_says_how_to_install_it",
    ),
    (
        "rlhf_kit/feedback/labelling.py",
        "            _tell_agreement(store, labeler, console)\n",
        "",
        "tests/feedback/test_labelling.py::test_ones_own_agreement_is_told_in_the_end",
    ),
]
