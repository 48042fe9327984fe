"""Where a study can be pushed to: the words of `cser-ray push --to`."""

from collections.abc import Callable

from tuning.take_home.push.runs import Pushed, PushedStudy, Say

Pusher = Callable[[PushedStudy, Say], Pushed]
TARGETS = "optuna:URL, mlflow, mlflow:URI, wandb, wandb:offline or tensorboard:FOLDER"


def parse_target(target: str) -> Pusher:
    """What pushes to a target. Its package is imported when it is called. Raises ValueError for no target."""
    kind, _, place = target.partition(":")
    if kind == "optuna" and place:
        from tuning.take_home.push import optuna

        return lambda study, say: optuna.push(study, place)
    if kind == "mlflow":
        from tuning.take_home.push import mlflow

        return lambda study, say: mlflow.push(study, place, say)
    if kind == "wandb":
        from tuning.take_home.push import wandb

        return lambda study, say: wandb.push(study, place or "online", say)
    if kind == "tensorboard" and place:
        from tuning.take_home.push import tensorboard

        return lambda study, say: tensorboard.push(study, place)
    raise ValueError(f"--to {target}: a study is pushed to {TARGETS}")
