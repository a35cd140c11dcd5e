"""Where models may be put. Commands ask before they load anything heavy, so torch is looked at only where the answer needs it."""

from __future__ import annotations

from heed.errors import require


def check_device(name: str) -> None:
    """Raise `UserError` unless `name` is `auto`, `cpu`, or an accelerator that torch finds on this machine."""
    if name in ("auto", "cpu"):
        return
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    kind = None if found is None else found.type
    known = [] if kind is None else [kind, *(f"{kind}:{i}" for i in range(torch.accelerator.device_count()))]
    require(name in known, "device", name, ", ".join(["auto", "cpu", *known]) if known else "auto or cpu: torch finds no GPU here")
