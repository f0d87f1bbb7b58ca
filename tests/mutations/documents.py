"""Pages in two languages: what stands in one and not in the other is seen."""

DOCTOR, PAIRS = "docs/zh-TW/doctor.md", "tests/test_zh_pages.py::"

MUTANTS = [
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
]
