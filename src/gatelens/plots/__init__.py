"""Figures and pages: curves, bars, maps, heads. Independent of any study."""
