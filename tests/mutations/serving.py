"""The pages: who is let in, what they show, what is kept."""

ACCESS, APP, UI, PAGES, RENDER = (
    f"rlhf_kit/serving/{name}.py" for name in ("access", "app", "ui", "labelling", "render")
)
GUARDED, PAGED, STARTED, FOUND = (f"tests/serving/test_{name}.py::" for name in ("access", "pages", "ui", "folder"))
RUNS, FOLLOWED = "rlhf_kit/serving/runs.py", "tests/serving/test_runs.py::"
FOLDER, LINKED = "rlhf_kit/serving/folder.py", FOUND + "test_no_link_is_followed"

MUTANTS = [
    (
        PAGES,
        "if not request.app.state.reveal_truth:",
        "if False:",
        "tests/feedback/test_told_truth.py::test_the_page_tells_the_truth_after_a_ranking_was_kept[False]",
    ),
    # the server
    (
        ACCESS,
        'if headers.get("host", "") not in self.hosts:',
        "if False:",
        GUARDED + "test_another_host_is_not_answered[evil.example]",
    ),
    (
        ACCESS,
        'if origin.partition("://")[2] not in self.hosts:',
        "if False:",
        GUARDED + "test_a_request_of_another_page_changes_nothing[http://evil.example]",
    ),
    (
        ACCESS,
        "or not hmac.compare_digest(given.encode(), expected.encode())",
        "",
        GUARDED + "test_the_token_is_of_one_session",
    ),
    (
        PAGES,
        'check_token(request, request.headers.get("x-csrf-token"))',
        "pass",
        GUARDED + "test_a_request_without_the_sessions_token_changes_nothing[wrong]",
    ),
    (
        APP,
        'check_token(request, fields.get("csrf"))',
        "pass",
        GUARDED + "test_a_request_without_the_sessions_token_changes_nothing[wrong]",
    ),
    (
        ACCESS,
        "return None if row is None else Person(row.id, row.name, row.role)",
        'return Person(1, "", "labeler") if row is None else Person(row.id, row.name, row.role)',
        GUARDED + "test_a_session_outlives_the_server_and_not_its_labeler",
    ),
    (
        ACCESS,
        "if role == schema.ADMIN and not who.is_admin:",
        "if False:",
        GUARDED + "test_every_route_for_every_role[labeler-1]",
    ),
    (
        ACCESS,
        "& links.c.used.is_(None)",
        "",
        GUARDED + "test_a_link_works_once_and_looking_at_it_does_not_use_it",
    ),
    (ACCESS, "& (links.c.expires > now)", "", GUARDED + "test_a_link_expires"),
    (
        ACCESS,
        "return hashlib.sha256(made.encode()).hexdigest()",
        "return made",
        GUARDED + "test_the_store_keeps_no_link_that_could_be_used",
    ),
    (ACCESS, "& links.c.used.is_not(None) &", "&", GUARDED + "test_a_link_that_nobody_used_is_no_session"),
    (ACCESS, "& (links.c.expires > time.time())", "", GUARDED + "test_a_session_expires"),
    (
        APP,
        "end_sessions, request.app.state.store, request",
        "str, request",
        GUARDED + "test_sign_out_ends_the_session",
    ),
    (
        APP,
        "@needs(schema.ADMIN)\ndef _sign_labeler_out",
        "@needs(schema.LABELER)\ndef _sign_labeler_out",
        GUARDED + "test_the_admin_signs_a_labeler_out_everywhere",
    ),
    (APP, "if not request.app.state.by_name:", "if False:", GUARDED + "test_by_links_alone_a_name_is_not_enough"),
    (
        APP,
        "if any(known == name and role == schema.ADMIN",
        "if any(False and known == name and role == schema.ADMIN",
        GUARDED + "test_an_admins_name_is_not_signed_in_by_name",
    ),
    (
        APP,
        "_count_attempt(request)\n    return await run_in_threadpool(_join, request, fields",
        "return await run_in_threadpool(_join, request, fields",
        GUARDED + "test_guessing_links_is_slowed_down",
    ),
    (
        ACCESS,
        'or int(headers["content-length"]) > BODY:',
        ":",
        GUARDED + "test_a_large_request_is_refused_before_it_is_read[300000]",
    ),
    (ACCESS, "return left >= 1", "return True", GUARDED + "test_too_many_requests_of_one_session_wait"),
    (ACCESS, "self._left.popitem(last=False)", "self._left.popitem()", GUARDED + "test_limits_by_hand"),
    (ACCESS, "headers[name] = value", "pass", GUARDED + "test_every_response_has_the_headers[/nothing]"),
    (
        ACCESS,
        'headers["cache-control"] = "no-store"',
        "pass",
        GUARDED + "test_every_response_has_the_headers[/rank]",
    ),
    (APP, 'same_site="strict"', 'same_site="lax"', GUARDED + "test_a_cookie_is_for_this_server_alone"),
    (APP, 'and not back.startswith(("//", "/\\\\"))', "", GUARDED + "test_preferences_lead_nowhere_else"),
    (RENDER, "autoescape=True", "autoescape=False", PAGED + "test_no_text_of_a_model_is_markup"),
    (RENDER, "    finalize=shown,\n", "", PAGED + "test_no_text_of_a_model_is_markup"),
    (APP, "or version != str(latest[0])", "", PAGED + "test_a_ranking_is_kept_with_all_that_was_said"),
    (
        PAGES,
        "raise  # nothing is wrong with the decision",
        'raise HTTPException(409, "no") from None  # nothing is wrong with the decision',
        PAGED + "test_a_full_disk_loses_nothing_that_was_acknowledged",
    ),
    (
        ACCESS,
        "request.session.clear()\n    request.session.update(kept, link=session, csrf=secrets.token_urlsafe(24))",
        "request.session.update(kept, link=session)",
        GUARDED + "test_signing_in_begins_a_session_of_its_own",
    ),
    (
        PAGES,
        "if task.mode == schema.EXAMPLE:",
        "if task.gold:",
        PAGED + "test_an_example_is_explained_and_a_task_with_known_answers_is_like_any_other",
    ),
    # the command
    (
        UI,
        "import uvicorn",
        "import torch  # noqa: F401\nimport uvicorn",
        STARTED + "test_lists_are_ranked_without_a_model_in_memory",
    ),
    (
        UI,
        "if not local and not options.labelers:",
        "if False:",
        STARTED + "test_an_address_for_others_is_refused_without_named_labelers[lab.example]",
    ),
    (
        "rlhf_kit/serving/access.py",
        "if is_loopback(host) else []",
        "",
        STARTED + "test_the_names_that_are_answered",
    ),
    (UI, "    if contents.models:\n", "    if False:\n", STARTED + "test_loading_a_model_prints_no_bar"),
    (
        "rlhf_kit/serving/access.py",
        "socket.TCP_NODELAY, 1)",
        "socket.TCP_NODELAY, 0)",
        GUARDED + "test_what_is_sent_is_not_held_back_until_the_client_confirms_what_came_before",
    ),
    # runs
    (
        RUNS,
        "(len(rows) - self.rows_drawn) * RESOLUTION > self.rows_drawn",
        "len(rows) > self.rows_drawn",
        FOLLOWED + "test_a_long_run_is_drawn_anew_by_its_two_hundredth_part",
    ),
    (
        RUNS,
        "        state.runs = contents_of(state.folder).runs\n",
        "        pass\n",
        FOLLOWED + "test_a_run_that_begins_later_is_found",
    ),
    (
        RUNS,
        "self.runs.popitem(last=False)",
        "self.runs.popitem()",
        FOLLOWED + "test_the_rows_of_runs_that_were_looked_at_long_ago_are_given_up",
    ),
    (
        RUNS,
        'blocks = ["now"] if seen == version else',
        "blocks =",
        FOLLOWED + "test_only_what_has_changed_is_sent",
    ),
    # a folder of runs and models
    (FOLDER, "entry.is_dir(follow_symlinks=False)", "entry.is_dir()", LINKED),
    (FOLDER, "path.is_file() and (linked or not path.is_symlink())", "path.is_file()", LINKED),
    (FOLDER, "if name in models:", "if False:", FOUND + "test_a_name_that_is_shown_twice_is_refused"),
    (FOLDER, "if path.is_symlink():", "if False:", FOUND + "test_labels_are_not_written_through_a_link"),
    (
        FOLDER,
        "deeper = 1 if folder == top else 0",
        "pass",
        FOUND + "test_models_that_generate_models_that_score_and_runs_are_told_apart",
    ),
    (
        FOLDER,
        "_kind(path, linked=True) != GENERATES:",
        "_kind(path, linked=True) is None:",
        FOUND + "test_a_model_that_does_not_generate_is_refused[reward]",
    ),
    (
        ACCESS,
        "        if who is None and not request.app.state.alone:",
        "        if False:",
        FOUND + "test_elsewhere_who_looks_signs_in[options0]",
    ),
    (
        APP,
        'by_name and all(is_loopback(urlsplit(f"//{host}").hostname or "") for host in hosts)',
        "by_name",
        FOUND + "test_elsewhere_who_looks_signs_in[options1]",
    ),
]
