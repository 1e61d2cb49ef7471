"""Pictures that a model draws: from prompts to image tokens, and from image tokens to pixels."""
