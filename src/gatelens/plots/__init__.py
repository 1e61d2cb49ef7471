"""How numbers look: curves, bars, maps, heads, pages. Knows no study."""
