"""The endpoint: who is answered, what is refused, and that what is told is of the model."""

API, FORMS, ANSWERS, REPLIES, SERVE = (
    f"rlhf_kit/serving/endpoint/{name}.py" for name in ("api", "forms", "answers", "replies", "serve")
)
ENDPOINT, GUARDS = "tests/serving/test_endpoint.py::", "tests/serving/test_endpoint_guards.py::"
ECHO = ENDPOINT + "test_an_echo_has_the_text_and_where_each_token_stands"
OTHERS = GUARDS + "test_only_this_machine_by_its_name_and_no_other_page_is_answered"

MUTANTS = [
    (API, '        if headers.get("host", "") not in self.hosts:', "        if False:", OTHERS),
    (API, 'partition("://")[2] not in self.hosts:', 'partition("://")[2] == "":', OTHERS),
    (API, "        if self.key is not None:", "        if False:", GUARDS + "test_a_key_is_needed_where_there_is_one"),
    (API, "        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)",
     "        await asyncio.wait({working})", GUARDS + "test_twenty_who_hang_up_leave_no_work"),
    (ANSWERS, "        for job in self._jobs:\n            job.cancel()", "        pass",
     GUARDS + "test_twenty_who_hang_up_leave_no_work"),
    (ANSWERS, "for seed in asked.seeds()]", "for seed in asked.seeds()[:1] * asked.n]",
     ENDPOINT + "test_several_answers_have_seeds_of_their_own_whatever_else_is_asked"),
    (SERVE, "    if key is None and not is_loopback(options.host):", "    if False:",
     GUARDS + "test_other_machines_need_a_key"),
    (FORMS, "    for fault in half_characters(value):", "    for fault in ():",
     GUARDS + "test_what_cannot_be_answered_is_refused_in_form"),
    (FORMS, "            if name not in NEUTRAL:", "            if False:",
     GUARDS + "test_what_cannot_be_answered_is_refused_in_form"),
    (REPLIES, "return dict(top).get(drawn.token, max(IMPOSSIBLE, drawn.logprob)), top",
     "return drawn.logprob - 1e-6, top", ENDPOINT + "test_likelihoods_are_those_in_process"),
    (REPLIES, '            return "bytes:" + _escaped(own)',
     '            return own.decode("utf-8", "ignore")', ECHO),
    ("rlhf_kit/generation/prompt_logprobs.py", "logits[: len(row) - 1].split", "logits[1 : len(row)].split",
     ENDPOINT + "test_likelihoods_are_those_in_process"),
    (
        "rlhf_kit/serving/ui.py",
        "    if not app.state.alone or app.state.speakers is None:",
        "    if app.state.speakers is None:",
        "tests/serving/test_endpoint.py::test_the_pages_answer_there_too_on_this_machine_alone",
    ),
]  # fmt: skip
