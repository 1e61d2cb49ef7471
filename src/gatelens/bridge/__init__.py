"""How a model of transformers is opened: its attention, layers, towers and parts."""
