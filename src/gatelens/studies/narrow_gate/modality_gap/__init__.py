"""Section *modality gap*: how far image tokens stand from text tokens in the residual stream."""
