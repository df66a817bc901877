"""How far off each pose may be: posterior of a match, error model, calibration on images with known poses."""
