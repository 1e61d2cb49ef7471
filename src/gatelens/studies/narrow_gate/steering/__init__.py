"""Section *steering*: a class direction added at the gate."""
