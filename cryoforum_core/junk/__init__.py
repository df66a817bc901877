"""Which images show no good particle, and why: features, simulated junk, classifier, labels, cones of viewing directions."""
