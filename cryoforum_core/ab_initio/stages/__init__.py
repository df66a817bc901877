"""The stages of the hybrid method, in their order: search, half_maps, network, final_matching, maps; and their store."""
