"""Section *drawing*: what the picture in a prompt does to a picture the model draws after it."""
