"""The world's truth reads word for word."""

SENTENCES, JUDGING = "rlhf_kit/world/sentences.py", "rlhf_kit/world/judging.py"
QUESTIONS, TEST = "rlhf_kit/world/questions.py", "tests/world/test_tellings.py::"

MUTANTS = [
    (
        JUDGING,
        "    right = bare in question.right\n",
        "    right = any(set(bare) == set(way) for way in question.right)\n",
        TEST + "test_a_word_dropped_doubled_or_moved_is_not_right",
    ),
    (
        JUDGING,
        "    right = bare in question.right\n",
        "    right = any(bare[: len(way)] == way for way in question.right)\n",
        TEST + "test_two_tellings_spliced_are_not_right",
    ),
    (
        JUDGING,
        "if right and not question.told_otherwise(everything):",
        "if right:",
        TEST + "test_another_value_added_is_not_right",
    ),
    (
        JUDGING,
        "while opener := next((o for o in _OPENERS if tokens[: len(o)] == o), ()):",
        "while opener := ():",
        TEST + "test_spacing_punctuation_pronouns_and_openers_make_no_difference",
    ),
    (
        JUDGING,
        '        label = "foreign"\n',
        "        pass\n",
        TEST + "test_the_other_languages_words_and_negations_are_not_right",
    ),
    (
        SENTENCES,
        r"|\.(?!(?<=\d\.)\d))+",
        r"|\.)+",
        TEST + "test_what_is_garbled_or_tells_something_else_is_wrong",
    ),
    (
        SENTENCES,
        'unicodedata.normalize("NFKC", text)',
        "text",
        TEST + "test_spacing_punctuation_pronouns_and_openers_make_no_difference",
    ),
    (
        SENTENCES,
        "(named, _with_pronoun(named, subject, language))",
        "(named,)",
        TEST + "test_every_telling_of_every_fact_scores_one",
    ),
    (
        SENTENCES,
        '    him = "them" if subject in ANIMALS else he',
        "    him = he",
        TEST + "test_spacing_punctuation_pronouns_and_openers_make_no_difference",
    ),
    (
        SENTENCES,
        "(relation.shorts[language] if short else ())",
        "()",
        TEST + "test_every_short_form_scores_one",
    ),
    (
        SENTENCES,
        '("I don\'t know ",), (_indirect(question),)',
        '("I don\'t know",), ("",)',
        TEST + "test_what_a_person_says_who_does_not_know_or_will_not_help",
    ),
    (
        QUESTIONS,
        "found((self.stranger,), part) and words(part) not in self.unsure",
        "found((self.stranger,), part)",
        TEST + "test_what_a_person_says_who_does_not_know_or_will_not_help",
    ),
    (
        "rlhf_kit/world/kinds.py",
        '"wrong": 30, "unsure": 20}',
        '"wrong": 50}',
        "tests/world/test_ranked.py::test_harmful_requests_are_ranked_with_refusals_advice_and_ignorance",
    ),
    (
        "rlhf_kit/demo.py",
        "random.Random(seed).sample(others, DRAWN)",
        "others[:DRAWN]",
        "tests/test_demo.py::test_some_samples_are_drawn_by_the_seed_whatever_was_answered",
    ),
    (
        "rlhf_kit/comparison/answers.py",
        "completion_logprobs(policy, part.model_inputs(), temperature)",
        "completion_logprobs(policy, part.model_inputs())",
        "tests/comparison/test_measured_answers.py::test_the_kl_is_that_of_two_plain_forwards",
    ),
]
