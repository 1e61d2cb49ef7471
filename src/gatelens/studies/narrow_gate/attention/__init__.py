"""Section *attention*: how the text divides its attention among the image side."""
