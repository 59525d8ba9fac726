"""A resumed run deletes best checkpoints of its own only."""

from pathlib import Path
from typing import Any

from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class OwnBestHook(Hook):
    """Makes of the best checkpoint that a resumed run remembers the one in its own folder.

    MMEngine remembers its path and deletes it once there is a better one. Where the checkpoint comes from
    another run, or the folder was copied, that is the best one of the other run.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Correct what the checkpoint remembers, or let it remember none."""
        remembered = checkpoint.get('message_hub', {}).get('runtime_info', {})
        out_dirs = (hook.out_dir for hook in runner.hooks if isinstance(hook, CheckpointHook))
        folder = checkpoint_folder(runner.work_dir, next(out_dirs, None))
        for key in [key for key in remembered if key.startswith('best_ckpt')]:
            if '://' in str(remembered[key]):
                continue
            own = folder / Path(str(remembered[key])).name
            if own.is_file():
                remembered[key] = str(own)
            else:
                del remembered[key]


def checkpoint_folder(work_dir: str, out_dir: str | None = None) -> Path:
    """Where the checkpoint hook writes: the work directory, or one of its name in the hook's out_dir."""
    if out_dir in (None, work_dir):
        return Path(work_dir)
    return Path(out_dir, Path(work_dir).absolute().name)
