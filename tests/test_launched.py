"""Which process speaks and where it computes: the environment is read in one way, accelerate's."""

import pytest
from accelerate.utils import get_cpu_distributed_information

from rlhf_kit.errors import UserError
from rlhf_kit.launched import COUNTS, RANKS, is_main_process, process_count
from rlhf_kit.processes import is_asked, on_cpu
from rlhf_kit.sft import SFTConfig
from rlhf_kit.stages.run import complete_for_machine
from tests.test_structure import FILES


@pytest.mark.parametrize("count,rank", [*zip(COUNTS, RANKS, strict=False), ("WORLD_SIZE", "LOCAL_RANK")])
def test_one_of_several_processes_speaks(monkeypatch, count, rank):
    for name in (*COUNTS, *RANKS):
        monkeypatch.delenv(name, raising=False)
    assert process_count() == 1 and is_main_process()
    monkeypatch.setenv(rank, "1")
    assert is_main_process()  # of one process, whatever a scheduler left there
    monkeypatch.setenv(count, "2")
    assert process_count() == 2 and not is_main_process()
    found = get_cpu_distributed_information()
    assert found.world_size == 2 and 1 in (found.rank, found.local_rank)
    monkeypatch.setenv(rank, "0")
    assert is_main_process()


@pytest.mark.parametrize("nothing", ["", "-1", "x"])
def test_what_is_no_number_is_not_set(monkeypatch, nothing):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, nothing)
    assert process_count() == 1 and is_main_process()
    monkeypatch.setenv("WORLD_SIZE", "0")
    assert process_count() == 1


@pytest.mark.parametrize("text,asked", [("1", True), ("yes", True), ("True", True), ("0", False), ("OFF", False)])
def test_a_switch_of_the_launch_is_read_as_accelerate_does(monkeypatch, text, asked):
    monkeypatch.setenv("ACCELERATE_USE_CPU", text)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    assert is_asked("CPU") == asked == on_cpu()
    assert complete_for_machine({"dtype": "float32"}, SFTConfig).get("use_cpu", False) == asked


@pytest.mark.parametrize("text", ["", "maybe", "2"])
def test_a_switch_that_says_neither_is_named(monkeypatch, text):
    monkeypatch.setenv("ACCELERATE_USE_CPU", text)
    with pytest.raises(UserError, match=f"ACCELERATE_USE_CPU='{text}'; set it to true or false"):
        complete_for_machine({}, SFTConfig)


def test_nothing_else_reads_them():
    for module, path in FILES.items():
        quoted = [f'"{name}"' for name in (*COUNTS, *RANKS)]
        read = [name for name in (*quoted, "parse_flag_from_env(") if name in path.read_text()]
        assert not read or module in ("rlhf_kit.launched", "rlhf_kit.processes"), (module, read)
