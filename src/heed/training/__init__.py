"""One loop and one module per algorithm; each algorithm is a function that reads like its paper."""
