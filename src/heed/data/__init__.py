"""Reading, checking, splitting, rendering and writing of training data; imports no torch."""
