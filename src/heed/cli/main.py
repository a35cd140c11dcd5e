"""The entry point: finds the subcommand, and tells what is the user's to mend in one line. It imports nothing heavy."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib import import_module
from types import FrameType

import heed
from heed.errors import Interrupted, UserError

COMMANDS = {
    "run": ("heed.cli.run:Run", "run a recipe; without one, the built-in demo"),
    "sft": ("heed.cli.single:SFT", "fine-tune a model on demonstrations"),
    "rm": ("heed.cli.single:RewardModel", "train a reward model on comparisons, and measure it"),
    "ppo": ("heed.cli.single:PPO", "optimise a model against a reward by PPO"),
    "reinforce": ("heed.cli.single:Reinforce", "optimise a model against a reward by REINFORCE"),
    "dpo": ("heed.cli.single:DPO", "optimise a model on comparisons directly"),
    "sample": ("heed.cli.single:Sample", "answer prompts with a model"),
    "eval": ("heed.cli.single:Eval", "measure a model on held-out prompts"),
    "report": ("heed.cli.report:Report", "write a run's report.html anew"),
    "chat": ("heed.cli.chat:Chat", "talk to a model in the terminal"),
    "data": ("heed.cli.data:Data", "check a data file: its format, its rows, what is wrong with which line"),
    "label": ("heed.cli.label:Label", "serve the labelling app"),
    "feedback": ("heed.cli.feedback:Feedback", "export what people said as training data; move projects; see how far they are"),
}
LONG = ("run", "sft", "rm", "ppo", "reinforce", "dpo", "sample", "eval")
"""Commands that greet at once, since loading torch takes seconds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit code is 0, 2 for what is the user's to mend, 128 + n for a stop by signal n."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _stop)
    try:
        return dispatch(words)
    except UserError as error:
        return _tell(str(error), 2)
    except Interrupted as stop:
        return _stopped(stop.signal_number)
    except KeyboardInterrupt:
        return _stopped(signal.SIGINT)
    except BrokenPipeError:
        # The reader (`head`, say) has gone; Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if not _disk_is_full(error):
            raise
        return _tell(f"{getattr(error, 'filename', None) or 'a file'} could not be written: the disk is full; free some space, {_AGAIN}", 2)


_AGAIN = "then the same command goes on from here"


def dispatch(words: Sequence[str]) -> int:
    """Find the subcommand and run it."""
    if words and words[0] in ("-V", "--version"):
        print(f"heed {heed.__version__}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, *rest = words
    if name not in COMMANDS:
        from difflib import get_close_matches

        close = get_close_matches(name, COMMANDS, n=1)
        raise UserError(f"there is no command {name!r}", expected=close[0] if close else f"one of {', '.join(COMMANDS)}")
    if name in LONG and not {"-h", "--help"} & set(rest):
        print(f"heed {heed.__version__} {name}: loading torch ...", flush=True)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # So that `module:function` finds the user's own modules.
    sys.path.insert(0, os.getcwd())

    import tyro

    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(import_module(module), attribute)
    if "transformers" in sys.modules:
        # Its bars for loading files would tear heed's own progress apart.
        sys.modules["transformers"].utils.logging.disable_progress_bar()
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            parsed = tyro.cli(command, args=rest, prog=f"heed {name}")
    except SystemExit as stop:
        if not told.getvalue():
            return int(stop.code or 0)
        raise UserError(unboxed(told.getvalue()), fix=f"see `heed {name} --help`") from None
    return parsed() or 0


def unboxed(told: str) -> str:
    """What tyro says of an option it cannot parse, in one line, without title, box and rules."""
    lines = (line.strip(" │|") for line in told.splitlines())
    said = " ".join(line for line in lines if line and not re.match(r"[╭╰+]|[─-]{3}", line))
    return said.partition(" For full helptext")[0]


def usage() -> str:
    """What `heed --help` prints."""
    lines = ["usage: heed COMMAND [OPTIONS]", "", (heed.__doc__ or "").strip().removeprefix("heed: ").capitalize(), "", "commands:"]
    lines += [f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join([*lines, "", "`heed COMMAND --help` tells a command's options; `heed run` alone shows the whole loop in minutes."])


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def _stopped(number: int) -> int:
    return _tell(f"stopped by {signal.Signals(number).name}; the same command goes on from here", 128 + number)


def _tell(message: str, code: int) -> int:
    print(f"heed: {message}", file=sys.stderr)
    return code


def _disk_is_full(error: Exception) -> bool:
    """Libraries below (safetensors, SQLite) tell it in words of their own."""
    told = str(error).lower()
    return getattr(error, "errno", None) == errno.ENOSPC or "no space left on device" in told or "disk is full" in told


if __name__ == "__main__":
    sys.exit(main())
