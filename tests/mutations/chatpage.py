"""The page Chat: whose answers are kept, who may keep them, and what a client that leaves ends."""

CHATTING, ANSWERING, PROOF = (f"rlhf_kit/serving/{name}.py" for name in ("chatting", "answering", "proof"))
SPEAKERS, ASSIGNMENT = "rlhf_kit/chat/speakers.py", "rlhf_kit/feedback/assignment.py"
ACCESS = "rlhf_kit/serving/access.py"
PAGED = "tests/serving/test_chatting.py::"
SCRIPT = "rlhf_kit/serving/static/chat.js"
LED = "tests/serving/test_browser_chat.py::test_all_go_on_from_one_answer_and_what_they_say_is_ranked"
FULL, ONLY, SHOWN = (
    PAGED + name
    for name in (
        "test_a_full_context_is_told",
        "test_only_what_a_model_gave_is_kept",
        "test_what_would_reorder_or_hide_text_is_shown_by_its_number",
    )
)

MUTANTS = [
    (SPEAKERS, "            job.cancel()", "            pass", PAGED + "test_a_client_that_leaves_ends_its_row"),
    (ANSWERING, "if context is not None and len(ids) >= context:", "if False:", FULL),
    (ANSWERING, '"full" if is_full else said.finish', "said.finish", FULL),
    (ANSWERING, "shown = terminal(text)", "shown = text", SHOWN),
    (SCRIPT, "current(one, one.lead ?? model)", "current(one, model)", LED),
    (SCRIPT, "turn.led === before.lead && ", "", LED),
    (SCRIPT, "{ led: turn.led, after: turn.after }", "{ after: turn.after }", LED),
    (PROOF, "if of_turns != _of_turns(turns):", "if False:", ONLY),
    (CHATTING, "if kind == schema.RANKING and len(", "if False and len(", ONLY),
    (
        ACCESS,
        'if who is None and not request.app.state.alone:\n        raise HTTPException(403, "sign in',
        'if False:\n        raise HTTPException(403, "sign in',
        PAGED + "test_elsewhere_chatting_needs_a_sign_in",
    ),
    (
        CHATTING,
        "    if who is None:",
        "    if False:",
        PAGED + "test_chatting_on_this_machine_needs_no_name_and_writing_does",
    ),
    (
        ACCESS,
        'check_token(request, request.headers.get("x-csrf-token"))',
        "pass",
        PAGED + "test_a_request_without_the_sessions_token_does_nothing[wrong-/chat/tasks]",
    ),
    (
        CHATTING,
        "if len(turns) > MOST_TURNS:",
        "if False:",
        PAGED + 'test_what_is_too_much_or_of_another_form_is_refused[sent3-413-"turns"]',
    ),
    (
        ASSIGNMENT,
        "policy.lock) if row is None else _assignment(row)",
        "policy.lock)",
        PAGED + "test_answers_of_several_models_are_ranked",
    ),
]
