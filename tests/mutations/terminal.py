"""What is said and shown: text is never markup, readers may leave, tables and bars fit."""

ESCAPING, HOSTILE = "tests/test_escaping.py::", "tests/stages/test_hostile_text.py::"
LINES, LINKS = "test_lines_are_broken_beside_chinese_letters_and_in_no_name", "tests/test_links.py::"
NUMBERS, LAUNCHED = "tests/test_numbers.py::", "tests/test_launched.py::"
SUITE, REPORT = "tests/eval/test_suite.py::", "tests/test_report.py::"

TERMINAL, CONSOLE = "rlhf_kit/terminal/__init__.py", "rlhf_kit/terminal/console.py"
CARD, SUITE_PAGE = "rlhf_kit/stages/card.py", "rlhf_kit/eval/suite/page.py"

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
    (CONSOLE, "markup=False", "markup=True", ESCAPING + "test_a_console_shows_text_as_it_stands"),
    (CONSOLE, "emoji=False", "emoji=True", ESCAPING + "test_a_console_shows_text_as_it_stands"),
    (
        CONSOLE,
        "render_str(terminal(text)",
        "render_str(text",
        ESCAPING + "test_a_console_shows_text_as_it_stands",
    ),
    (TERMINAL, "print(escaping.terminal(text)", "print(text", HOSTILE + "test_an_unknown_option"),
    (
        TERMINAL,
        "            _send_nowhere(self.fileno())\n",
        "            raise\n",
        ESCAPING + "test_a_reader_who_leaves_ends_nothing",
    ),
    (TERMINAL, '"backslashreplace"', '"strict"', ESCAPING + "test_a_reader_who_leaves_ends_nothing"),
    (
        TERMINAL,
        "        handler.setFormatter(_Escaped())",
        "        pass",
        ESCAPING + "test_logs_are_escaped",
    ),
    ("rlhf_kit/pages/shell.py", "html(quote(path))", "html(path)", ESCAPING + "test_a_link_leads_beside_the_page"),
    (
        "rlhf_kit/demo.py",
        "## {markdown(row['prompt'])}",
        "## {row['prompt']}",
        ESCAPING + "test_the_demos_answers_are_text",
    ),
    (
        "rlhf_kit/demo.py",
        'markdown_row([title, answer["text"],',
        'markdown_row([title, "",',
        ESCAPING + "test_the_demos_answers_are_text",
    ),
    (
        CARD,
        'json.dumps(value).replace("<", r"\\u003c")',
        "json.dumps(value)",
        HOSTILE + "test_a_merged_adapter_and_its_card",
    ),
    (CARD, "{markdown(base)} with", "{base} with", ESCAPING + "test_a_card_holds_names_as_text"),
    (CARD, "On {markdown(source)}", "On {source}", HOSTILE + "test_a_run_its_completions_and_its_card"),
    (
        SUITE_PAGE,
        "markdown_row([name, *cells])",
        '"| " + " | ".join([name, *cells]) + " |"',
        HOSTILE + "test_a_suites_three_forms",
    ),
    (
        "rlhf_kit/stages/run.py",
        "        say(after_end(settings))",
        "        pass",
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
        "rlhf_kit/progress.py",
        "rate = (done - self.before) / seconds",
        "rate = done / seconds",
        "tests/test_progress.py::test_a_resumed_run_does_not_take_its_earlier_steps_for_speed",
    ),
    (
        "rlhf_kit/progress.py",
        "seconds < QUIET_FOR and not self.numbers",
        "False",
        "tests/test_progress.py::test_progress_is_a_bar_on_a_terminal_and_silent_elsewhere",
    ),
    (
        "rlhf_kit/processes.py",
        '"The tokenizer has new PAD/BOS/EOS tokens"',
        '"\\n"',
        "tests/eval/test_extractive_run.py::test_training_in_a_pipe_is_quiet",
    ),
    (
        "rlhf_kit/eval/extractive/finetune.py",
        "    show_progress(trainer)\n",
        "",
        "tests/eval/test_extractive_run.py::test_training_in_a_pipe_is_quiet",
    ),
    (
        SUITE_PAGE,
        ".maximum <= console.width",
        ".minimum <= console.width",
        SUITE + "test_the_table_is_whole_on_80_columns",
    ),
    (
        SUITE_PAGE,
        '"" if layout.differences else MARKS[change.verdict]',
        '""',
        SUITE + "test_the_table_is_whole_on_80_columns",
    ),
    (SUITE_PAGE, "link(file, cell) if file else", "", SUITE + "test_figures_lead_to_what_they_are_made_of"),
    (
        "rlhf_kit/eval/suite/task.py",
        "page if page.is_file() else self.results_folder(cell) / ITEM_RESULTS",
        "page",
        SUITE + "test_three_stages_by_the_command",
    ),
    (
        "rlhf_kit/report/page.py",
        "risen[0] > 0 and fallen[1] < 0",
        "risen[1] > 0 and fallen[0] < 0",
        REPORT + "test_the_result_follows_the_intervals",
    ),
    (
        "rlhf_kit/intervals.py",
        "return (low > 0) - (high < 0)",
        "return 1 if low > 0 else -1",
        REPORT + "test_the_result_follows_the_intervals",
    ),
    (CONSOLE, "letter not in ENDS", "True", ESCAPING + LINES),
    (CONSOLE, "before not in BEGINS", "True", ESCAPING + LINES),
    (
        CONSOLE,
        "if self.is_terminal else [text]",
        "",
        ESCAPING + "test_a_paragraph_is_whole_for_who_reads_it_by_program",
    ),
    (
        "rlhf_kit/launched.py",
        "process_count() == 1 or _number(RANKS, 0) == 0",
        "_number(RANKS, 0) == 0",
        LAUNCHED + "test_one_of_several_processes_speaks",
    ),
    (
        "rlhf_kit/launched.py",
        "if value.isdecimal()",
        "if value",
        LAUNCHED + "test_what_is_no_number_is_not_set",
    ),
    (
        "rlhf_kit/stages/run.py",
        "    if on_cpu():",
        "    if not torch.accelerator.is_available():",
        LAUNCHED + "test_a_switch_of_the_launch_is_read_as_accelerate_does",
    ),
    (
        "rlhf_kit/processes.py",
        "    except ValueError as error:\n        text",
        "    except KeyError as error:\n        text",
        LAUNCHED + "test_a_switch_that_says_neither_is_named",
    ),
    (
        "rlhf_kit/pages/shell.py",
        "or pages.foreign([page.name])",
        "",
        LINKS + "test_a_page_is_led_back_once_and_only_where_it_is_ours",
    ),
    (
        "rlhf_kit/pages/shell.py",
        "is_there = link is not None and (path.parent / unquote(link[1])).is_file()",
        "is_there = link is not None",
        LINKS + "test_a_page_is_led_back_once_and_only_where_it_is_ours",
    ),
    (
        "rlhf_kit/eval/results.py",
        'write_page(files, path.name, text) if path.suffix == ".html" else files.write(path.name, text)',
        "files.write(path.name, text)",
        LINKS + "test_every_page_of_a_demo_leads_to_the_others",
    ),
    (
        "rlhf_kit/pages/shell.py",
        "    if back not in text:",
        "    if True:",
        LINKS + "test_a_page_is_led_back_once_and_only_where_it_is_ours",
    ),
    (
        "rlhf_kit/report/page.py",
        "if (path.parent / place).is_file()}",
        "}",
        LINKS + "test_a_suite_that_ends_early_is_not_led_to",
    ),
    (
        "rlhf_kit/demo.py",
        'link_back(folder / "suite" / REPORT, "eval suite", folder / REPORT)',
        "pass",
        LINKS + "test_every_page_of_a_demo_leads_to_the_others",
    ),
    (
        "rlhf_kit/eval/suite/task.py",
        'link_back(output / name / entry.name / REPORT, f"eval {entry.command}", output / REPORT)',
        "pass",
        LINKS + "test_every_page_of_a_demo_leads_to_the_others",
    ),
    (
        "rlhf_kit/eval/transfer/task.py",
        'link_back(output / figure.row / f"seed-{seed}" / figure.test / REPORT, f"eval {TASK}", output / REPORT)',
        "pass",
        "tests/eval/test_transfer_run.py::test_every_page_of_a_table_leads_to_the_others",
    ),
    (
        "rlhf_kit/eval/icl/page.py",
        "{html(c.model)} (",
        "{c.model} (",
        HOSTILE + "test_a_suite",
    ),
    (
        "rlhf_kit/eval/extractive/page.py",
        "{html(settings.model)} ·",
        "{settings.model} ·",
        HOSTILE + "test_an_extractive_run_and_its_training",
    ),
]  # fmt: skip
