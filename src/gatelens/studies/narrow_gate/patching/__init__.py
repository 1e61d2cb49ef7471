"""Section *patching*: the gate's activations taken from another picture."""
