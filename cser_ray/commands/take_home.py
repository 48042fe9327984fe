"""The commands that take a study's results elsewhere: `best`, `export` and `push`."""

from typing import Any

import click

from cser_ray.commands.jobs import POD_OPTIONS, refuse_pods, take_pods
from cser_ray.commands.options import METHOD_NAME, SELECT, clear_errors, with_options


@click.command()
@click.argument("results")
@click.option("--ratio", type=float, required=True, help="Overall ratio R_C.")
@click.option(
    "--method", type=METHOD_NAME, help="This method's settings [those of the one that the comparison recommends]."
)
@SELECT
@click.option("--to", type=click.Choice(["rayjob"]), help="Print the training on real workers as a RayJob of KubeRay.")
@with_options(POD_OPTIONS)
@click.option(
    "--out", help="Write the settings to this YAML file [to standard output]; of a RayJob, its results folder."
)
def best(
    results: str, ratio: float, method: str | None, select: str | None, to: str | None, out: str | None, **pods: Any
) -> None:
    """Take a study's best configuration home: settings as YAML, commands that train with it, its optimizer as Python."""
    with clear_errors():
        from tuning.compare.selection import read_chosen
        from tuning.take_home.best import find_best

        found = find_best(read_chosen(results, select), ratio, method)
        if to is not None:
            from cser_ray.train.logistics import Logistics
            from tuning.take_home.rayjob import rayjob

            config = found.config
            asked = take_pods(pods, config.workers, config.processes_per_worker, Logistics().cpus_per_worker)
            click.echo(rayjob("cser-ray train --distributed", found.settings | {"out": out}, asked), nl=False)
            return
        refuse_pods(pods, "--to rayjob")
        settings = found.settings_file()
        if out is not None:
            with open(out, "w") as file:
                file.write(settings)
        click.echo(found.report(results, out, found.code()), err=out is None)
        if out is None:
            click.echo(settings, nl=False)


@click.command()
@click.argument("results")
@click.option("--ratio", type=float, help="Overall ratio R_C [none is needed where there is one finished run].")
@click.option(
    "--method", type=METHOD_NAME, help="This method's model [that of the one that the comparison recommends]."
)
@click.option("--run", "run_id", help="The model of this run, by its id in the results, in place of --ratio.")
@SELECT
@click.option(
    "-o",
    "--out",
    "paths",
    multiple=True,
    default=("model.safetensors",),
    show_default=True,
    help="The file: .safetensors, or .pt for torch.load; several times for both.",
)
def export(
    results: str,
    ratio: float | None,
    method: str | None,
    run_id: str | None,
    select: str | None,
    paths: tuple[str, ...],
) -> None:
    """Take a study's averaged model home: a state_dict that torch loads without this package."""
    with clear_errors():
        from tuning.take_home.export import check_kind, find_model, write_model

        if run_id is not None and (ratio, method) != (None, None):
            raise ValueError("--run names one run: leave out --ratio and --method")
        if method is not None and ratio is None:
            raise ValueError("--method needs the --ratio at which it stands")
        for path in paths:
            check_kind(path)
        model = find_model(results, ratio, method, select, run_id)
        for path in paths:
            write_model(model, path)
        click.echo(model.report(paths))


@click.command()
@click.argument("results")
@click.option(
    "--to",
    "targets",
    multiple=True,
    required=True,
    help="optuna:URL, mlflow[:URI], wandb[:offline] or tensorboard:FOLDER; several times for several.",
)
@click.option("--name", help="Of the Optuna study, MLflow experiment or W&B project [the study's].")
def push(results: str, targets: tuple[str, ...], name: str | None) -> None:
    """Hand a study's ended runs on to other trackers; again, and only what is new is added."""
    with clear_errors():
        from tuning.take_home.push.runs import read_pushed
        from tuning.take_home.push.targets import parse_target

        pushers = [parse_target(target) for target in targets]
        study = read_pushed(results, name)
        for pusher in pushers:
            done = pusher(study, lambda line: click.echo(line, err=True))
            click.echo(f"{done.where}: {done.added} runs added, {done.there} were there")
        if study.left:
            click.echo(f"{study.left} runs have no result yet; push again when they have.", err=True)
