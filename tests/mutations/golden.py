"""What a command does stays as it was recorded: a prompt, a default in the settings, an exit status."""

TEST = "tests/golden/test_golden.py::test_a_command_does_what_it_did"

MUTANTS = [
    (
        "rlhf_kit/eval/coqa/turns.py",
        '*(f"Q: {question}\\n\\nA: {answer}".rstrip() for question, answer in turns)',
        '*(f"Q: {question}\\nA: {answer}".rstrip() for question, answer in turns)',
        TEST + "[coqa-eval/whole]",
    ),
    (
        "rlhf_kit/eval/text/perplexity.py",
        "stride = self.options.stride or window // 2",
        "stride = self.options.stride or window // 4",
        TEST + "[perplexity-eval/whole]",
    ),
    ("rlhf_kit/report/doctor.py", "return 1 if findings else 0", "return 0", TEST + "[doctor/endless]"),
]
