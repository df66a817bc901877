"""Maps, half maps and their FSC from particles with poses."""
