"""Data is read whole: no order, column or field vanishes without a word, no wrong row is learnt from."""

UNREAD, LOADING = "rlhf_kit/data/unread.py", "rlhf_kit/data/loading.py"
FORMATS, ORDERS = "rlhf_kit/data/formats.py", "rlhf_kit/data/orders.py"
LOADING_TEST, FIELDS_TEST = "tests/data/test_loading.py::", "tests/data/test_fields.py::"
EMPTY_TEST = "tests/data/test_uninformative.py::"

MUTANTS = [
    # The order of answers.
    (
        "rlhf_kit/data/checks.py",
        'sorted(set(row["scores"]), reverse=True)',
        'sorted(set(row["scores"]))',
        LOADING_TEST + "test_scores_are_read_as_scores",
    ),
    (
        FORMATS,
        "of_rows = {at: [fault] for at, fault in missing_orders(rows).items()} | of_rows",
        "pass",
        LOADING_TEST + "test_file_order_is_taken_only_where_no_row_has_an_order_and_said_once",
    ),
    (
        UNREAD,
        'unread_orders(rows) if kind == "ranked" else []',
        "[]",
        LOADING_TEST + "test_a_column_that_may_be_the_order_is_never_passed_over",
    ),
    (
        ORDERS,
        'or _is_one_number_an_answer(value, row.get("completions"))',
        "",
        LOADING_TEST + "test_a_column_that_may_be_the_order_is_never_passed_over",
    ),
    (
        UNREAD,
        'if kind == "ranked" and not any(isinstance(row, Mapping) and has_order(row) for row in rows):',
        "if False:",
        LOADING_TEST + "test_file_order_is_taken_only_where_no_row_has_an_order_and_said_once",
    ),
    # Columns and fields that nothing reads.
    (
        UNREAD,
        "and not any(value.strip() in text for text in _texts(row))",
        "and any(value.strip() in text for text in _texts(row))",
        LOADING_TEST + "test_what_is_part_of_the_prompt_is_not_lost",
    ),
    (
        UNREAD,
        "counts.update(str(name) for name in present if form and name not in (*form, *KINDS[kind].optional))",
        "pass",
        LOADING_TEST + "test_scores_beside_a_pair_and_a_second_form_are_named_as_unread",
    ),
    (
        UNREAD,
        "answers += listed if is_list(listed) else []",
        "pass",
        FIELDS_TEST + "test_fields_of_answers_that_are_compared_are_named",
    ),
    (
        UNREAD,
        'counts.update(sorted(held - {"role", "content", *LEARNT}))',
        "pass",
        FIELDS_TEST + "test_fields_of_answers_that_are_compared_are_named",
    ),
    # Rows that say nothing.
    (
        LOADING,
        "for at, row in enumerate(source.rows) if not _is_blank(row)",
        "for at, row in enumerate(source.rows) if _is_blank(row)",
        EMPTY_TEST + "test_texts_without_text_are_left_out_and_counted",
    ),
    (
        LOADING,
        'tell(f"{source.name}: {count} hold no text and are left out")',
        "pass",
        EMPTY_TEST + "test_texts_without_text_are_left_out_and_counted",
    ),
    (
        FORMATS,
        "Context(context.unit, chosen(context.numbers_of(rows), kept), context.faults)",
        "Context(context.unit, None, context.faults)",
        EMPTY_TEST + "test_a_source_of_empty_texts_is_an_error_and_a_wrong_row_too",
    ),
]
