"""Commands that can be profiled: every one takes ``--profile PATH``."""

from __future__ import annotations

from typing import Any

import click

from featurestore.errors import FeatureStoreError


class ProfiledCommand(click.Command):
    """A command with the option ``--profile``, under which it runs as in ``fs.profile``."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.params.append(
            click.Option(
                ["--profile"],
                type=click.Path(dir_okay=False),
                metavar="PATH",
                expose_value=False,
                callback=_remember,
                help="Record memory into a JSON file; see it with: featurestore profile show PATH",
            )
        )

    def invoke(self, ctx: click.Context) -> Any:
        path = ctx.meta.pop(__name__, None)
        if path is None:
            return super().invoke(ctx)
        from featurestore.profiling.profile import profile

        try:
            recording = profile(path, memory_limit=ctx.params.get("memory_limit"))
        except FeatureStoreError as error:
            raise click.ClickException(str(error)) from error
        try:
            with recording:
                return super().invoke(ctx)
        finally:
            click.echo(f"memory recorded: featurestore profile show {path}", err=True)


class ProfiledGroup(click.Group):
    """A group whose commands can be profiled."""

    command_class = ProfiledCommand


def _remember(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    ctx.meta[__name__] = value


@click.group()
def profile() -> None:
    """Look at recorded memory; every command records it with --profile PATH.

    Example: featurestore profile show build.json
    """


@profile.command("show")
@click.argument("path", metavar="RUN.JSON")
@click.option("--output", metavar="PICTURE", help="Draw into this file: svg, html, png or pdf.")
def show_profile(path: str, output: str | None) -> None:
    """Show what cost the memory of a recorded run: a chart and a table of its phases.

    Example: featurestore profile show run.json --output run.png
    """
    from featurestore.profiling.timeline import Timeline

    timeline = Timeline.load(path)
    if output is None:
        from featurestore.profiling.text import print_to_terminal

        print_to_terminal(timeline)
    else:
        timeline.draw(output)
        click.echo(output)
