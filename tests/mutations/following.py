"""A run that is followed while it trains: what is read again, what is known of it, what its charts take."""

FOLLOWING, CHARTS = "rlhf_kit/report/following.py", "rlhf_kit/pages/charts.py"
TEST = "tests/test_following.py::"

MUTANTS = [
    (
        FOLLOWING,
        "self._end += len(whole) + len(newline)",
        "pass",
        TEST + "test_only_what_is_new_is_read",
    ),
    (
        FOLLOWING,
        'whole, newline, half = (half + new).rpartition(b"\\n")',
        'whole, newline, half = half + new, b"", b""',
        TEST + "test_what_is_new_is_added_and_half_a_line_waits_for_its_rest",
    ),
    (
        FOLLOWING,
        "identity != self._file or ",
        "",
        TEST + "test_a_file_that_was_replaced_is_begun_anew",
    ),
    (
        FOLLOWING,
        " or file.read(len(self._last)) != self._last:",
        " and file.read(len(self._last)) != self._last:",
        TEST + "test_a_file_that_was_cut_and_written_again_is_begun_anew",
    ),
    (
        FOLLOWING,
        "self.rows = self.rows + rows",
        "self.rows += rows",
        TEST + "test_what_is_new_is_added_and_half_a_line_waits_for_its_rest",
    ),
    (
        FOLLOWING,
        "return path, mark if stat.S_ISREG(status.st_mode) else None",
        "return path, mark",
        TEST + "test_a_link_is_not_followed",
    ),
    (
        FOLLOWING,
        "shown = OF_PPO if",
        "shown = FIGURES if",
        TEST + "test_a_run_at_a_glance",
    ),
    (
        FOLLOWING,
        "        return RUNNING\n",
        "        return STOPPED\n",
        TEST + "test_a_run_goes_on_while_a_process_holds_its_folder",
    ),
    (
        "rlhf_kit/report/doctor.py",
        '        key = "kl" if self.is_ppo else "loss"\n        return [row for row in self.rows if key in row]\n',
        '        return [row for row in self.rows if ("kl" if self.is_ppo else "loss") in row]\n',
        TEST + "test_the_logs_of_a_long_run_are_counted_in_one_pass",
    ),
    (CHARTS, "abs(value) < HUGE", "value == value", TEST + "test_charts_take_any_number"),
    (
        CHARTS,
        '<g class="{line.colour}">',
        '<g style="--c:var(--{line.colour})">',
        TEST + "test_the_charts_of_a_run_hold_no_style_that_a_strict_page_forbids",
    ),
]
