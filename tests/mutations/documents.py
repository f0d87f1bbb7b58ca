"""Pages in two languages, the front pages, the drawing of the folders, and the places and walks that pages name."""

DOCTOR, PAIRS = "docs/zh-TW/doctor.md", "tests/test_zh_pages.py::"
FRONT = "tests/test_readme.py::"

HOUSE, ARCHITECTURE = "docs/architecture.md", "tests/test_architecture.py::"
PLACES = ARCHITECTURE + "test_every_place_that_a_page_names_is_there"

MUTANTS = [
    (
        HOUSE,
        "generation --> models",
        "generation --> data",
        ARCHITECTURE + "test_the_drawing_and_the_table_are_those_of_the_imports",
    ),
    (
        "tests/drawing.py",
        "others - set().union(*map(reached, others))",
        "others",
        ARCHITECTURE + "test_the_drawing_leaves_out_what_a_longer_way_says",
    ),
    (HOUSE, "config.py::PPOConfig.cliprange", "config.py::PPOConfig.clip_range", PLACES + "[architecture.md]"),
    ("CONTRIBUTING.md", "interchange/__init__.py::FORMATS", "interchange.py::FORMATS", PLACES + "[CONTRIBUTING.md]"),
    (HOUSE, "ops.py::ordered_pairs", "ops.py::best_of_losses", ARCHITECTURE + "test_a_ranked_list_reaches_its_loss"),
    (
        "rlhf_kit/stages/advice.py",
        "NEXT.get(settings.stage, MEASURE)",
        "NEXT[settings.stage]",
        ARCHITECTURE + "test_a_new_stage_needs_no_row_in_the_table_of_what_comes_next",
    ),
    (
        HOUSE,
        "5. `rlhf_kit/generation/sampling.py::sample`",
        "5. `rlhf_kit/ppo/experience.py::losses`",
        ARCHITECTURE + "test_a_prompt_reaches_ppos_loss_and_an_option_its_trainer",
    ),
    (DOCTOR, "ppo --truth truth_reward", "ppo --truth other", PAIRS + "test_both_pages_show_the_same_code"),
    (
        DOCTOR,
        "低於 0.75",
        "低於 0.57",
        PAIRS + "test_both_pages_have_the_same_sections_names_and_figures",
    ),
    (
        DOCTOR,
        "../../rlhf_kit/report/symptoms.py",
        "../rlhf_kit/report/symptoms.py",
        PAIRS + "test_links_lead_to_the_same_pages_in_chinese_where_there_are_such",
    ),
    (DOCTOR, "不會載入任何模型", "不會加載任何模型", PAIRS + "test_the_chinese_is_taiwans"),
    (
        "README.md",
        "## Install\n",
        "## Install\n" + "\n" * 60,
        FRONT + "test_a_front_page_is_short_and_has_three_pictures",
    ),
    (
        "README.zh-TW.md",
        "(docs/screens/suite-page.png)",
        "(docs/screens/none.png)",
        FRONT + "test_a_front_page_is_short_and_has_three_pictures[README.zh-TW.md]",
    ),
    ("README.md", "(docs/tour.md#lora)", "(docs/tour.md#qlora)", FRONT + "test_links_resolve[README.md]"),
    (
        "README.md",
        "`from rlhf_kit.ppo import advantages, losses, sample`",
        "`from rlhf_kit.ppo import advantages, losses, samples`",
        FRONT + "test_every_wish_has_a_command_or_an_import_that_works[README.md]",
    ),
    (
        "README.md",
        "| `rlhf-kit doctor runs/demo/ppo-no-kl` |",
        "| `rlhf-kit doctor runs/demo/ppo` |",
        FRONT + "test_both_languages_hold_the_same[README.md]",
    ),
    (
        "README.zh-TW.md",
        "微調後的答對 73 題",
        "微調後的答對 37 題",
        PAIRS + "test_both_pages_have_the_same_sections_names_and_figures[README.md]",
    ),
    (
        "docs/zh-TW/files.md",
        "  sft.py reward/ ppo/ ",
        "  sft.py reward/ ",
        PAIRS + "test_both_pages_show_the_same_code[files.md]",
    ),
    (
        "docs/icl.md",
        "eval lambada --model_name_or_path gpt2 ",
        "eval lambada --model gpt2 ",
        FRONT + "test_pages_name_options_as_the_help_does[docs/icl.md]",
    ),
]
