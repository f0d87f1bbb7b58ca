"""The in-context task on a model and on exercises that a test has made."""

from rlhf_kit.eval import runner
from rlhf_kit.eval.icl.task import ICL, ICLArguments
from rlhf_kit.processes import processes


def measured(model, tokenizer, exercises, shots, folder=None, state=None, chat=False, **options):
    arguments = ICLArguments(models=["tiny"], shots=list(shots), apply_chat_template=chat, **options)
    task = ICL(arguments).of("tiny", folder)
    task.rows, task.tokenizer, task.context = exercises, tokenizer, getattr(model.config, "n_positions", None)
    task.parameters, task.load = model.num_parameters(), lambda device: model
    return runner.finished(task, runner.begun(task, state or processes()))
