"""`--push_to_hub`: the finished model, with its card, as one commit of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError
from transformers.trainer_utils import HubStrategy

from rlhf_kit.data.hub import HUB_FAULTS, hub_fault, is_local
from rlhf_kit.errors import UserError
from rlhf_kit.launched import is_main_process
from rlhf_kit.models.weights import reason
from rlhf_kit.stages.arguments import Settings
from rlhf_kit.stages.output import from_main_process
from rlhf_kit.terminal import complain

# What stays here: checkpoints, the record of the folder, and the options as Python has them, a token among them.
KEPT = ["checkpoint-*", "checkpoint-*/**", ".*", ".*/**", "training_args.bin", "completions/**"]


def check_push(settings: Settings) -> Iterator[str]:
    """What is wrong with the options of a push."""
    args, model = settings.training, settings.model
    if not args.push_to_hub:
        unread = sorted(
            name for name in settings.given if name.startswith("hub_") and getattr(args, name) is not False
        )
        yield from (f"--{name} needs --push_to_hub." for name in unread)
        return
    if "hub_strategy" in settings.given and args.hub_strategy != HubStrategy.END:
        yield (
            f"--hub_strategy {args.hub_strategy.value}: only the finished model and its card are pushed, no "
            "checkpoints. Give --hub_strategy end, or leave it out."
        )
    if args.hub_always_push:
        yield "--hub_always_push: nothing is pushed before the end. Leave it out."
    if model.use_peft and not model.merge_adapter and is_local(model.model_name_or_path):
        yield (
            f"--push_to_hub: an adapter on {model.model_name_or_path!r}, a folder on this machine, cannot be loaded "
            "anywhere else. Give --merge_adapter, or train on a model of the hub."
        )


def open_repository(settings: Settings) -> None:
    """Make the repository that the model is to go to, before anything is trained: it may be refused.

    The model is pushed by us when all is done; transformers would push in between, and copy files into the folder.
    Raises UserError.
    """
    args = settings.training
    settings.publishes, args.push_to_hub = args.push_to_hub and not settings.run.dry_run, False
    if settings.publishes:
        args.hub_model_id = from_main_process(settings, lambda: _repository(settings))


def _repository(settings: Settings) -> str:
    args = settings.training
    name, hub = args.hub_model_id or _name(settings), HfApi(token=args.hub_token)
    try:
        hub.whoami()
        return hub.create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id
    except (*HUB_FAULTS, ValueError) as error:
        raise _refused(name, error) from error


def _name(settings: Settings) -> str:
    """What a repository is called without `--hub_model_id`: as the folder is."""
    return Path(settings.training.output_dir).absolute().name


def _refused(name: str, error: Exception) -> UserError:
    if isinstance(error, LocalTokenNotFoundError):
        why = "there is no token. Log in by `hf auth login`, or give a token that may write in HF_TOKEN."
    else:
        why = hub_fault(name, error) or reason(error)
    return UserError(f"--push_to_hub: the model cannot go to {name!r}: {why}")


def publish(settings: Settings) -> None:
    """Push what the folder holds, if that was asked for. Raises UserError; the folder keeps all of it."""
    args = settings.training
    if not settings.publishes or not is_main_process():
        return
    name, folder = args.hub_model_id, args.output_dir
    try:
        commit = HfApi(token=args.hub_token).upload_folder(
            repo_id=name, folder_path=folder, ignore_patterns=KEPT, revision=args.hub_revision,
            commit_message=f"{settings.stage} by rlhf_kit",
        )  # fmt: skip
    except (*HUB_FAULTS, ValueError) as error:
        raise UserError(
            f"{_refused(name, error)} The complete model is in {folder!r}; to push it later: `hf "
            f"upload {name} {folder}`."
        ) from error
    complain(f"Pushed to {commit.repo_url} (commit {commit.oid}).")
