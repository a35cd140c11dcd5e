"""`heed run`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from heed.pipeline.dryrun import dry_run
from heed.pipeline.recipe import DEMO, load_recipe
from heed.pipeline.runner import run


@dataclass(frozen=True, slots=True)
class Run:
    """Run a recipe: every stage that is not done yet, in the run's folder. Without a recipe, the built-in demo."""

    recipe: tyro.conf.Positional[str | None] = None
    """A YAML file; the demo where there is none."""
    output: str | None = None
    """The run's folder, in place of the recipe's."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE"), tyro.conf.UseAppendAction] = ()
    """Change one setting, as in `--set ppo.kl_coef=0.1`; may be repeated."""
    dry_run: bool = False
    """Check everything, say what each stage would take, and run nothing."""

    def __call__(self) -> int:
        recipe = load_recipe(self.recipe or DEMO, self.set)
        if self.output:
            recipe = replace(recipe, output=self.output)
        if self.dry_run:
            dry_run(recipe)
            return 0
        run(recipe)
        print(f"summary: {recipe.folder / 'summary.json'}")
        return 0
