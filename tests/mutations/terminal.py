"""What is said and shown: text is never markup, readers may leave, tables and bars fit."""

ESCAPING, HOSTILE = "tests/test_escaping.py::", "tests/recipes/test_hostile_text.py::"
SUITE, REPORT = "tests/eval/test_suite.py::", "tests/test_report.py::"

MUTANTS = [
    ("rlhf_kit/escaping.py", "\\u2028-\\u202e", "\\u2028-\\u2029", ESCAPING + "test_by_hand"),
    ("rlhf_kit/escaping.py", 'replace("\\r\\n", "\\n")', 'replace("\\r", "")', ESCAPING + "test_by_hand"),
    (
        "rlhf_kit/escaping.py",
        'r"\\s*\\n\\s*|\\t", " "',
        'r"\\t", " "',
        ESCAPING + "test_nothing_is_left_that_moves_or_marks",
    ),
    ("rlhf_kit/escaping.py", "html_entities.escape(_MARKUP", "str(_MARKUP", ESCAPING + "test_by_hand"),
    ("rlhf_kit/console.py", "markup=False", "markup=True", ESCAPING + "test_a_console_shows_text_as_it_stands"),
    ("rlhf_kit/console.py", "emoji=False", "emoji=True", ESCAPING + "test_a_console_shows_text_as_it_stands"),
    (
        "rlhf_kit/console.py",
        "render_str(terminal(text)",
        "render_str(text",
        ESCAPING + "test_a_console_shows_text_as_it_stands",
    ),
    ("rlhf_kit/terminal.py", "print(escaping.terminal(text)", "print(text", HOSTILE + "test_an_unknown_option"),
    (
        "rlhf_kit/parser.py",
        "error(escaping.terminal(message))",
        "error(message)",
        ESCAPING + "test_what_was_typed_is_escaped_where_argparse_complains",
    ),
    (
        "rlhf_kit/terminal.py",
        "            _send_nowhere(self.fileno())\n",
        "            raise\n",
        ESCAPING + "test_a_reader_who_leaves_ends_nothing",
    ),
    ("rlhf_kit/terminal.py", '"backslashreplace"', '"strict"', ESCAPING + "test_a_reader_who_leaves_ends_nothing"),
    (
        "rlhf_kit/terminal.py",
        "        handler.setFormatter(_Escaped())",
        "        pass",
        ESCAPING + "test_logs_are_escaped",
    ),
    ("rlhf_kit/page.py", "html(quote(path))", "html(path)", ESCAPING + "test_a_link_leads_beside_the_page"),
    (
        "rlhf_kit/demo.py",
        "## {markdown(row['prompt'])}",
        "## {row['prompt']}",
        ESCAPING + "test_the_demos_answers_are_text",
    ),
    (
        "rlhf_kit/demo.py",
        'markdown_row([title, given["text"],',
        'markdown_row([title, "",',
        ESCAPING + "test_the_demos_answers_are_text",
    ),
    (
        "recipes/card.py",
        'json.dumps(value).replace("<", r"\\u003c")',
        "json.dumps(value)",
        HOSTILE + "test_a_merged_adapter_and_its_card",
    ),
    ("recipes/card.py", "{markdown(base)} with", "{base} with", ESCAPING + "test_a_card_holds_names_as_text"),
    ("recipes/card.py", "On {markdown(source)}", "On {source}", HOSTILE + "test_a_run_its_completions_and_its_card"),
    (
        "eval/suite_page.py",
        "markdown_row([name, *cells])",
        '"| " + " | ".join([name, *cells]) + " |"',
        HOSTILE + "test_a_suites_three_forms",
    ),
    (
        "recipes/run.py",
        "            say(after_end(settings))",
        "            pass",
        HOSTILE + "test_a_run_its_completions_and_its_card",
    ),
    (
        "rlhf_kit/training/progress.py",
        '{"loss"} if "kl" in logs else set()',
        "set()",
        "tests/test_progress.py::test_numbers_come_in_order_and_short",
    ),
    (
        "rlhf_kit/training/progress.py",
        "(PrinterCallback, ProgressCallback)",
        "()",
        "tests/test_progress.py::test_the_kits_bar_is_the_only_one",
    ),
    (
        "rlhf_kit/processes.py",
        '"The tokenizer has new PAD/BOS/EOS tokens"',
        '"\\n"',
        "tests/eval/test_extractive_run.py::test_training_in_a_pipe_is_quiet",
    ),
    (
        "eval/extractive/finetune.py",
        "    show_progress(trainer)\n",
        "",
        "tests/eval/test_extractive_run.py::test_training_in_a_pipe_is_quiet",
    ),
    (
        "eval/suite_page.py",
        ".maximum <= console.width",
        ".minimum <= console.width",
        SUITE + "test_the_table_is_whole_on_80_columns",
    ),
    (
        "eval/suite_page.py",
        '"" if layout.differences else MARKS[change.verdict]',
        '""',
        SUITE + "test_the_table_is_whole_on_80_columns",
    ),
    ("eval/suite_page.py", "link(file, cell) if file else", "", SUITE + "test_figures_lead_to_what_they_are_made_of"),
    (
        "eval/suite_run.py",
        "page if page.is_file() else folder / ITEM_RESULTS",
        "page",
        SUITE + "test_three_stages_by_the_command",
    ),
    (
        "rlhf_kit/report.py",
        "risen[0] > 0 and fallen[1] < 0",
        "risen[1] > 0 and fallen[0] < 0",
        REPORT + "test_the_result_follows_the_intervals",
    ),
    (
        "rlhf_kit/report.py",
        "interval[0] <= 0 <= interval[1]",
        "False",
        REPORT + "test_the_result_follows_the_intervals",
    ),
]  # fmt: skip
