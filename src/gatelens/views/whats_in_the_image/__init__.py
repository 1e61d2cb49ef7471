"""The page of the study “What's in the image?”: its figures and words."""
