"""Ab initio: from images and CTF alone to a map, poses and a trained network. Above training, inference and report."""
