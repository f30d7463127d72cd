"""``jupyter torpor``: manage the kernels of this user's running Jupyter servers from a terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

from torpor.cli import (
    command_options,
    console,
    human_age,
    note,
    print_json,
    printable,
    readable,
    run_command,
)
from torpor_jupyter.client import rest

EPILOG = "KERNEL: the beginning of an id, or a notebook. CHECKPOINT: a name, the beginning of an id, or latest."


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EPILOG)
def cli() -> None:
    """Save, park, wake and fork the kernels of running Jupyter servers."""


kernel_argument = click.argument("kernel")
files_option = click.option(
    "--files",
    type=click.Choice(["as-they-were", "as-they-are"]),
    default="as-they-were",
    show_default=True,
    help="Whether a file that was changed in place since is an error (as-they-were) or accepted (as-they-are).",
)


@cli.command("list")
@command_options
def list_kernels(as_json: bool) -> None:
    """List the kernels, running and parked."""
    from rich.table import Table  # noqa: PLC0415  as the commands of `torpor`

    found = rest.kernels()
    if as_json:
        print_json([kernel | {"server": server.url} for server, kernel in found])
        return
    table = Table(box=None, pad_edge=False)
    for title in ("kernel", "state", "memory", "notebook", "server"):
        table.add_column(title)
    for server, kernel in found:
        paths = ", ".join(session["path"] or "" for session in kernel["sessions"])
        state = kernel["state"] if kernel["state"] == "parked" else kernel["execution_state"]
        memory = readable(kernel["memory"]) if kernel["memory"] else ""
        table.add_row(kernel["id"], state, memory, printable(paths), server.url)
    console().print(table)


@cli.command("checkpoints")
@kernel_argument
@command_options
def checkpoints(kernel: str, as_json: bool) -> None:
    """List the checkpoints of a kernel, oldest first."""
    found = rest.find(kernel)
    made = found.get("checkpoints")
    if as_json:
        print_json(made)
        return
    for one in made:
        name = one["name"] or one["cell"]
        here = "*" if one["id"] == found.head else " "
        age, size = human_age(one["created_ns"]), readable(one["written"])
        click.echo(f"{here} {one['id']}  {age:>12}  {size:>10}  {printable(name)}")


@cli.command("checkpoint")
@kernel_argument
@click.option("--name", default="", help="A name for the checkpoint.")
@command_options
def checkpoint(kernel: str, name: str, as_json: bool) -> None:
    """Save a kernel; it keeps running."""
    made = rest.find(kernel).post("checkpoints", name=name)
    _tell(made, as_json, f"saved as {made['id']}: {readable(made['size'])}, {readable(made['written'])} of it new")
    if not as_json:
        for notice in made["notices"]:
            note(notice)


@cli.command("park")
@kernel_argument
@click.option("--name", default="", help="A name for the checkpoint.")
@command_options
def park(kernel: str, name: str, as_json: bool) -> None:
    """Save a kernel and end its process."""
    answer = rest.find(kernel).post("park", name=name)
    _tell(answer, as_json, f"parked in {answer['snapshot']}")


@cli.command("resume")
@kernel_argument
@files_option
@command_options
def resume(kernel: str, files: str, as_json: bool) -> None:
    """Wake a parked kernel."""
    answer = rest.find(kernel).post("resume", files_as_they_are=files == "as-they-are")
    _tell(answer, as_json, f"woken as process {answer['pid']}")


@cli.command("restore")
@kernel_argument
@click.argument("checkpoint")
@click.option("--notebook", is_flag=True, help="Also restore the notebook's file.")
@files_option
@command_options
def restore(kernel: str, checkpoint: str, notebook: bool, files: str, as_json: bool) -> None:
    """Take a kernel back to a checkpoint; first, its current state is saved as another checkpoint."""
    found = rest.find(kernel)
    chosen = found.checkpoint(checkpoint)
    as_they_are = files == "as-they-are"
    answer = found.post(f"checkpoints/{chosen}/restore", notebook=notebook, files_as_they_are=as_they_are)
    undo = f"; the state before is {answer['undo']}" if answer["undo"] else ""
    _tell(answer, as_json, f"back at {chosen}{undo}")


@cli.command("fork")
@kernel_argument
@click.argument("checkpoint", default="latest")
@click.option("--path", help="The path of the new notebook; by default beside the kernel's own.")
@files_option
@command_options
def fork(kernel: str, checkpoint: str, path: str | None, files: str, as_json: bool) -> None:
    """Wake a checkpoint as a second kernel, with a copy of the notebook."""
    found = rest.find(kernel)
    chosen = found.checkpoint(checkpoint)
    chosen_path = {"path": path} if path else {}
    answer = found.post(f"checkpoints/{chosen}/fork", files_as_they_are=files == "as-they-are", **chosen_path)
    _tell(answer, as_json, f"kernel {answer['kernel']['id']}, notebook {answer['path']}")


@cli.command("export")
@kernel_argument
@click.argument("checkpoint", default="latest")
@click.argument("file", required=False)
@command_options
def export(kernel: str, checkpoint: str, file: str | None, as_json: bool) -> None:
    """Write a checkpoint with its notebook to FILE, by default beside the notebook; its name ends in .torpor.

    FILE holds all memory of the kernel, with its keys and passwords.
    """
    found = rest.find(kernel)
    chosen = found.checkpoint(checkpoint)
    chosen_path = {"path": rest.serving(file, found.server)[1]} if file else {}
    answer = found.post(f"checkpoints/{chosen}/export", **chosen_path)
    _tell(answer, as_json, f"exported to {os.path.join(found.server.root_dir, answer['path'])}")


@cli.command("import")
@click.argument("file")
@command_options
def import_(file: str, as_json: bool) -> None:
    """Take a checkpoint from a FILE of `export` into the store, and write its notebook beside FILE.

    A checkpoint is a program that will run as you: import only what comes from somebody whose programs you would run.
    """
    server, path = rest.serving(file)
    answer = server.post("import", {"path": path})
    _tell(
        answer,
        as_json,
        f"imported checkpoint {answer['id']} of kernel {answer['kernel_id']}, notebook {answer['path']};"
        f" `jupyter torpor fork {answer['kernel_id'][:8]}` wakes it",
    )


def _tell(answer: dict[str, Any], as_json: bool, words: str) -> None:
    if as_json:
        print_json(answer)
    else:
        click.echo(words)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``jupyter torpor`` and exit; `argv` is sys.argv[1:] unless given."""
    run_command(cli, "jupyter torpor", argv)
