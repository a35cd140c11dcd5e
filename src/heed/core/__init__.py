"""Pure tensor mathematics: torch only; no models, files, configuration or devices. Every mask is boolean, True = counts."""
