"""Section *modality gap*: how far image tokens are from text tokens in the residual stream."""
