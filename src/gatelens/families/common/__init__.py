"""What all families share: the layout of image tokens, attention with hooks, decoders with foreign towers."""
