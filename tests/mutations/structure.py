"""The shape of the project: each rule of `tests/test_structure.py`, broken once."""

TEST = "tests/test_structure.py::"
LAYERS = TEST + "test_a_module_imports_only_what_stands_below_it"
FLOOR, READABLE = TEST + "test_the_floor_imports_nothing_of_ours", TEST + "test_files_and_functions_stay_readable"
ESCAPING, ERRORS = "rlhf_kit/escaping.py", "rlhf_kit/errors.py"
STATUS = "    status = 2\n"

MUTANTS = [
    (
        "rlhf_kit/data/faults.py",
        "import numbers\n",
        'import numbers\n\nREAD_BY = "rlhf_kit.data.loading:load"\n',
        TEST + "test_no_modules_import_one_another",
    ),
    (
        "rlhf_kit/errors.py",
        "import difflib\n",
        "import difflib\n\nfrom rlhf_kit.world import kinds\n",
        TEST + "test_the_longest_way_down_is_short",
    ),
    (
        "rlhf_kit/errors.py",
        "import difflib\n",
        "import difflib\n\n\ndef hidden():\n    from rlhf_kit.world import kinds\n",
        TEST + "test_the_longest_way_down_is_short",
    ),
    (ESCAPING, "import re\n", "import re\nfrom rlhf_kit.errors import UserError\n", LAYERS + "[rlhf_kit.escaping]"),
    (
        ESCAPING,
        "import re\n",
        "import re\nfrom rlhf_kit import world\n",
        FLOOR + "[escaping]",
    ),
    (ERRORS, STATUS, f'{STATUS}    home = "rlhf_kit.stages.run:run"\n', LAYERS + "[rlhf_kit.errors]"),
    (
        ERRORS,
        STATUS,
        STATUS + "\n    def __init__(self):\n" + "        pass\n" * 61,
        READABLE,
    ),
    (ERRORS, STATUS, STATUS + "    found = 0\n" * 100, TEST + "test_variables_are_nouns_of_their_content"),
    (
        "rlhf_kit/report/doctor.py",
        "from rlhf_kit.errors import UserError",
        "from rlhf_kit.error import UserError",
        TEST + "test_a_type_checker_finds_every_import",
    ),
    (
        "rlhf_kit/ppo/config.py",
        "    cliprange: float",
        "    text: str | None = None\n    cliprange: float",
        TEST + "test_every_setting_is_read_somewhere",
    ),
]
