"""What is refused, by name and all of it together, before anything is loaded or written."""

import pytest

from rlhf_kit.comparison.config import CompareOptions, read_entries
from rlhf_kit.errors import UserError
from rlhf_kit.options.reading import read_record
from tests.tiny_stages import run_command

GIVEN = {
    "model_name_or_path": "M", "reward_model": "R", "heldout_prompts": "world", "prompts": "P", "truth": "world",
    "tuning_trials": 2, "output_dir": "out",
}  # fmt: skip
PPO = {"method": "ppo", "strengths": [0.1, 0.2]}
BEST = {"method": "best_of_n", "strengths": [2, 4]}


def entries(methods=(PPO, BEST), **options):
    return read_entries(read_record("compare-methods", CompareOptions, {**GIVEN, "methods": list(methods), **options}))


def test_entries_by_name():
    first, second = entries(
        [{**PPO, "name": "near", "options": {"learning_rate": 1e-4}}, {**BEST, "method": "best-of-n"}]
    )
    assert (first.name, first.strengths, first.label(0.1)) == ("near", (0.1, 0.2), "kl_coef-0.1")
    assert (second.name, second.label(4)) == ("best_of_n", "n-4") and second.method.stage is None


@pytest.mark.parametrize(
    "methods, fault",
    [
        ([{**PPO, "strenghts": [1]}], "there is no 'strenghts'. Did you mean 'strengths'?"),
        ([{"method": "pppo", "strengths": [1]}], "method 'pppo' is none. Did you mean 'ppo'?"),
        ([{**PPO, "strengths": []}], "give a list of values of kl_coef"),
        ([{**PPO, "strengths": [0.1, 0.1]}], "none of them twice"),
        ([{**PPO, "strengths": [-1]}], "kl_coef -1 must not be negative"),
        ([{**BEST, "strengths": [1.5]}], "n 1.5 must be a whole number"),
        ([{**PPO, "options": {"learning_rat": 1}}], "learning_rat: no such option. Did you mean 'learning_rate'?"),
        ([{**PPO, "options": {"mini_batch_size": 0}}], "mini_batch_size=0 must be at least 1"),
        ([{**PPO, "options": {"seed": 3, "kl_coef": 1}}], "the table sets kl_coef, seed; leave them out"),
        ([{**BEST, "options": {"learning_rate": 1}}], "trains nothing and takes no options; leave learning_rate out"),
        ([PPO, {**BEST, "tuning_trials": 5}], "tuning_trials 5, and --tuning_trials is 2: every method gets the same"),
        ([PPO, PPO], "2 methods have the name 'ppo'"),
        ([{**PPO, "name": "a/b"}], "name 'a/b' cannot be a folder's here"),
        (["ppo"], "give `method` and `strengths`"),
    ],
)  # fmt: skip
def test_a_fault_of_a_method_is_told(methods, fault):
    if methods == ["ppo"]:
        with pytest.raises(UserError, match="needs"):
            entries(methods)
        return
    with pytest.raises(UserError) as error:
        entries(methods)
    assert fault in str(error.value)


@pytest.mark.parametrize(
    "options, fault",
    [
        ({"truth": None}, "give --truth or --truth_rankings, and not both"),
        ({"truth_rankings": "T", "reward": {}}, "give --truth or --truth_rankings, and not both"),
        ({"truth": None, "truth_rankings": "T"}, "--truth_rankings trains a reward model on them"),
        ({"reward_model": None}, "give --reward_model, or --reward to make one"),
        ({"reward_model": None, "reward": {}}, "--reward makes a reward model of --rankings: give them"),
        ({"sft": {}}, "--sft makes another start model for each seed"),
        ({"sft": {"learning_rate": -1}, "reward_model": None, "reward": {}, "rankings": "K"}, "learning_rate=-1"),
        ({"reward": {"seed": 1}, "reward_model": None, "rankings": "K"}, "--reward: the table sets seed"),
        ({"heldout_prompts": "H"}, "--truth world judges the world's own questions"),
        ({"truth": "R"}, "is the reward model that the methods follow"),
        ({"prompts": None}, "learns from prompts: give --prompts"),
        ({"seeds": [1, 1]}, "none of them twice"),
        ({"tax": ["world-sum"]}, "Did you mean 'world-sums'?"),
    ],
)
def test_a_fault_of_the_whole_is_told(options, fault):
    with pytest.raises(UserError) as error:
        entries(**options)
    assert fault in str(error.value)


def test_all_faults_are_told_together_and_nothing_is_written(tmp_path, capsys):
    config = tmp_path / "x.yaml"
    config.write_text(
        "model_name_or_path: M\nreward_model: R\nheldout_prompts: H\nprompts: P\ntuning_trials: 1\n"
        "methods:\n  - {method: ppo, strengths: [-1], options: {nothing: 1}}\n  - {method: dpp, strengths: [1]}\n"
    )
    assert run_command("compare-methods", ["--config", config, "--output_dir", tmp_path / "out"]) == 2
    told = capsys.readouterr().err
    assert all(part in told for part in ("--truth", "kl_coef -1", "nothing: no such option", "'dpp' is none"))
    assert not (tmp_path / "out").exists()
