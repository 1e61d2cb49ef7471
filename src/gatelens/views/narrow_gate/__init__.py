"""The narrow-gate study's page: its figures and words."""
