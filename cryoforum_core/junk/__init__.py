"""Which images hold no good particle, and why: features, simulated junk, classifier, labels, view cones."""
